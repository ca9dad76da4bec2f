"""Heartbeats: nodes say that they live, the control plane notices when they stop. Never events; coming and going is (design.md §6.5).

A beat goes to ``strand.hb.<node>`` for those who listen now, and with a time to live into the bucket ``NODES`` for those who start later.
A node is called expired only while this process could have heard it: silence of the bus is not silence of the nodes (design.md §10.5).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus import direct, subjects
from bus.requests import ApiError
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

BEAT_S: Final = 10.0
DEAD_S: Final = 40.0
"""Without a beat for so long a node counts as offline: three beats may be lost."""
ALL_BEATS: Final = "strand.hb.*"
MAX_BODY: Final = 64 * 1024
MAX_NODES: Final = 100_000

Seen = Callable[[str, datetime], Awaitable[None]]
Expired = Callable[[str, datetime], Awaitable[None]]


async def beat(nc: Client, node: str, body: Mapping[str, Any] | None = None, *, dead_s: float = DEAD_S) -> None:
    """Say once that the node lives. Nothing is waited for: the next beat comes soon."""
    data = orjson.dumps(body or {})
    await nc.publish(subjects.heartbeat(node), data)
    await nc.publish(f"$KV.{subjects.NODES_BUCKET}.{subjects.token(node)}", data, headers={"Nats-TTL": str(max(int(dead_s), 1))})


@asynccontextmanager
async def beating(nc: Client, node: str, body: Callable[[], Mapping[str, Any]], every_s: float = BEAT_S) -> AsyncIterator[None]:
    """Beat while the block runs, from its very beginning on."""

    async def loop() -> None:
        while True:
            try:
                await beat(nc, node, body(), dead_s=every_s * (DEAD_S / BEAT_S))
            except Exception as error:  # noqa: BLE001 - a node that cannot say how it is still lives, and says so next time
                log.warning("heartbeat.not-sent", node=node, error=repr(error)[:300])
            await asyncio.sleep(every_s)

    task = asyncio.create_task(loop(), name="heartbeat")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(slots=True)
class _Life:
    heard: float
    """On the monotonic clock."""
    at: datetime
    body: dict[str, Any]
    told: float | None = None
    """When it was last said to be expired."""
    saying: asyncio.Task[None] | None = None


class Watch:
    """Calls ``seen(node, at)`` at every beat and ``expired(node, last seen)`` when beats stay out, again and again while they do.

    ``expected`` names nodes that ought to live: one that is never heard expires too. Calls about one node never overlap; what comes while
    one runs is left out, since the next beat says it again.
    """

    def __init__(
        self, nc: Client, seen: Seen, expired: Expired, dead_s: float = DEAD_S, *, expected: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self._nc = nc
        self._seen = seen
        self._expired = expired
        self._dead_s = dead_s
        self._expected = expected or (lambda: ())
        self._lives: dict[str, _Life] = {}
        self._listening_since = time.monotonic()
        self._reconnects = 0
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def bodies(self) -> dict[str, dict[str, Any]]:
        """What each node that lives said last."""
        return {node: life.body for node, life in self._lives.items() if life.told is None}

    def said(self, node: str) -> dict[str, Any]:
        """What a node that lives said last; empty when it is silent."""
        life = self._lives.get(node)
        return {} if life is None or life.told is not None else life.body

    async def __aenter__(self) -> Self:
        self._subscription = await self._nc.subscribe(ALL_BEATS, cb=self._hear)
        self._reconnects = self._nc.stats["reconnects"]
        self._task = asyncio.create_task(self._run(), name="heartbeat watch")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        tasks = [task for task in (self._task, *(life.saying for life in self._lives.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        await self._recall()
        while True:
            await asyncio.sleep(self._dead_s / 16)
            try:
                self._look(time.monotonic())
            except Exception:
                log.exception("heartbeat.look-failed")

    async def _recall(self) -> None:
        """Those that beat before this process began."""
        stream, seq = f"KV_{subjects.NODES_BUCKET}", 1
        try:
            while seq:
                got = await direct.batch(self._nc, stream, f"$KV.{subjects.NODES_BUCKET}.*", seq)
                for message in got.messages:
                    at = datetime.fromisoformat(message.time[:19] + "+00:00")
                    age = max((datetime.now(UTC) - at).total_seconds(), 0)
                    self._note(message.subject.rsplit(".", 1)[1], message.data, at, time.monotonic() - age)
                seq = got.next_seq
        except (Refused, ApiError, ValueError) as error:
            log.warning("heartbeat.nothing-recalled", error=repr(error)[:300])

    async def _hear(self, message: Msg) -> None:
        self._note(message.subject.rsplit(".", 1)[1], message.data, datetime.now(UTC), time.monotonic())

    def _note(self, node: str, data: bytes, at: datetime, heard: float) -> None:
        life = self._lives.get(node)
        if life is None:
            if len(self._lives) >= MAX_NODES:
                return
            life = self._lives[node] = _Life(heard, at, {})
        elif heard < life.heard:
            return
        life.heard, life.at, life.body, life.told = heard, at, _body(data), None
        self._say(node, life, self._seen)

    def _look(self, now: float) -> None:
        if not self._nc.is_connected or self._nc.stats["reconnects"] != self._reconnects:
            self._reconnects = self._nc.stats["reconnects"]
            self._listening_since = now
            return
        for node in self._expected():
            if node not in self._lives and len(self._lives) < MAX_NODES:
                self._lives[node] = _Life(self._listening_since, datetime.now(UTC) - timedelta(seconds=now - self._listening_since), {})
        for node, life in list(self._lives.items()):
            quiet_since = max(life.heard, self._listening_since)
            if now - quiet_since >= self._dead_s and (life.told is None or now - life.told >= self._dead_s):
                life.told = now
                self._say(node, life, self._expired)

    def _say(self, node: str, life: _Life, tell: Callable[[str, datetime], Awaitable[None]]) -> None:
        if life.saying is not None and not life.saying.done():
            return

        async def said() -> None:
            try:
                await tell(node, life.at)
            except Exception:
                log.exception("heartbeat.not-taken", node=node)

        life.saying = asyncio.create_task(said())


def watch(
    nc: Client, seen: Seen, expired: Expired, dead_s: float = DEAD_S, *, expected: Callable[[], Iterable[str]] | None = None
) -> Watch:
    """Watch all nodes while the ``async with`` block runs."""
    return Watch(nc, seen, expired, dead_s, expected=expected)


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data) if len(data) <= MAX_BODY else {}
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
