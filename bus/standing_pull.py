"""One durable consumer, read by one long pull after another, delivered to a callback (reference/jetstream-eventstore.md §1.5).

nats-py's ``fetch`` polls, blocks on full ack windows and hides why a pull ended. Here the server's own words decide: expired pulls and
changes of leader are re-issued, a missing consumer is attached again, and silence beyond two heartbeats counts as a lost pull.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

log = structlog.get_logger(__name__)

EXPIRES_S: Final = 30.0
HEARTBEAT_S: Final = 5.0
_LOOK_S: Final = 0.25
"""How often silence and reconnects are looked for; nats-py tells only one callback of a reconnect, and it is not ours."""
_NS: Final = 1_000_000_000
_STATUS_EXPIRED: Final = "408"
_STATUS_HEARTBEAT: Final = "100"


class Pull:
    """Keeps a pull open until it is cancelled. At most ``batch`` messages are on their way; the consumer's ack window bounds the rest.

    ``attach(fresh)`` makes sure that the consumer exists; ``fresh`` is true once, before the first pull. ``take`` must not wait.
    """

    def __init__(
        self,
        nc: Client,
        stream: str,
        durable: str,
        attach: Callable[[bool], Awaitable[None]],
        take: Callable[[Msg], None],
        *,
        batch: int = 256,
        expires: float = EXPIRES_S,
        heartbeat: float = HEARTBEAT_S,
    ) -> None:
        self._nc = nc
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._body = orjson.dumps({"batch": batch, "expires": int(expires * _NS), "idle_heartbeat": int(heartbeat * _NS)})
        self._attach = attach
        self._take = take
        self._batch = batch
        self._silence = heartbeat * 2 + 1
        self._number = 0
        self._left = 0
        self._heard = 0.0
        self._ended: asyncio.Future[str] | None = None
        self.attached = asyncio.Event()

    async def run(self) -> None:
        """Pull for ever."""
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(f"{inbox}.*", cb=self._receive)
        try:
            fresh, failures = True, 0
            while True:
                try:
                    await self._attach(fresh)
                    fresh = False
                    self.attached.set()
                    reason = await self._pull_until_gone(inbox)
                    failures = 0 if reason == "gone after work" else failures + 1
                except Exception as error:  # noqa: BLE001 - whatever it is: a reader that stops without a word is worse
                    failures += 1
                    log.warning("pull.detached", subject=self._next, error=repr(error)[:500], failures=failures)
                self.attached.clear()
                await asyncio.sleep(_pause(failures))
        finally:
            if not self._nc.is_closed:
                await subscription.unsubscribe()

    async def _pull_until_gone(self, inbox: str) -> str:
        """Re-issue the pull until the consumer is not there any more."""
        failures, worked = 0, False
        while True:
            self._number += 1
            self._left = self._batch
            self._heard = time.monotonic()
            self._ended = asyncio.get_running_loop().create_future()
            await self._nc.publish(self._next, self._body, reply=f"{inbox}.{self._number}")
            why = await self._end_of_pull(self._ended)
            worked = worked or self._left < self._batch
            if why in {"full", _STATUS_EXPIRED}:
                failures = 0
                continue
            log.info("pull.ended", subject=self._next, why=why)
            if why.startswith(("404", "503", "409 Consumer Deleted", "409 Consumer is push")):
                return "gone after work" if worked else "gone"
            failures += 1
            await asyncio.sleep(_pause(failures))

    async def _end_of_pull(self, ended: asyncio.Future[str]) -> str:
        connections = self._nc.stats["reconnects"]
        while True:
            try:
                return await asyncio.wait_for(asyncio.shield(ended), _LOOK_S)
            except TimeoutError:
                if self._nc.stats["reconnects"] != connections:
                    return "reconnected"
                if time.monotonic() - self._heard >= self._silence:
                    return "silence"

    async def _receive(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            # of whichever pull: its subject does not say; a straggler of a lost pull only makes the next one come early
            self._heard = time.monotonic()
            self._take(message)
            self._left -= 1
            if self._left == 0:
                self._end("full")
        elif message.headers and message.subject.endswith(f".{self._number}"):
            self._heard = time.monotonic()
            status = message.headers.get("Status", _STATUS_HEARTBEAT)
            if status != _STATUS_HEARTBEAT:
                self._end(status if status == _STATUS_EXPIRED else f"{status} {message.headers.get('Description', '')}")

    def _end(self, why: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(why)


def _pause(failures: int) -> float:
    return min(0.05 * 2**failures, 2.0) * random.uniform(0.5, 1.0) if failures else 0.0  # noqa: S311 - spreads readers, guards nothing
