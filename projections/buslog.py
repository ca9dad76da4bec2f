"""The log on JetStream, as :class:`projections.log.Log` wants it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from bus import direct, subjects
from bus.connection import Client
from bus.requests import call
from bus.subscription import Tail
from bus.verify import verify_log
from domain.kernel.ids import SYSTEM_PROJECT
from projections.engine import Message
from projections.log import Batch, Page

AHEAD: Final = 2
"""Batches that wait for their reader; the tail stops asking the server when it cannot hand over more."""
BULK: Final = 256
"""A batch of this size is hardly the last one."""
LINGER_S: Final = 0.005
"""How long what comes alone waits for more, when nobody asks for it: a transaction for each takes time from the command's own reply."""
PAGE_BYTES: Final = 8 << 20
FAULTS: Final = 100
"""Places that one answer names."""


class BusLog:
    """The stream EVENTS over one connection."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._tail: Tail[Message] | None = None
        self._verifying: dict[tuple[str, str | None], asyncio.Task[dict[str, Any]]] = {}

    async def batches(self, after: int) -> AsyncGenerator[Batch, None]:
        """Everything behind ``after``; an empty batch says that nothing more is waiting after all."""
        ready: asyncio.Queue[Sequence[Message] | None] = asyncio.Queue(AHEAD)
        tail: Tail[Message] = Tail(self._nc, after, [subjects.ALL_EVENTS], ready.put, decode=None, linger_s=LINGER_S)
        self._tail = tail
        async with tail, _signals(tail, ready):
            owed = True
            while True:
                if owed and ready.empty() and tail.caught_up.is_set():
                    owed = False
                    yield Batch([], more=False)
                messages = await ready.get()
                if messages is None:
                    await tail.wait()
                    raise ConnectionError("the tail ended")
                more = not tail.caught_up.is_set() or not ready.empty() or len(messages) >= BULK
                owed = more or not messages
                if messages:
                    yield Batch(messages, more)

    def hurry(self) -> None:
        if self._tail is not None:
            self._tail.hurry()

    async def identity(self) -> str:
        """When the stream was made."""
        return str((await call(self._nc, f"STREAM.INFO.{subjects.EVENTS}"))["created"])

    async def last(self) -> int:
        """The position of the log's end, from the stream's leader."""
        found = await direct.get(self._nc, subjects.EVENTS, leader=True, last_by_subj=subjects.ALL_EVENTS)
        return 0 if found is None else found.seq

    async def page(self, subject: str, seq: int, count: int) -> Page:
        got = await direct.batch(self._nc, subjects.EVENTS, subject, seq, count, PAGE_BYTES)
        return Page([(m.seq, m.data) for m in got.messages], got.next_seq or None)

    async def verify(self, project: str, identifier: str | None) -> dict[str, Any]:
        """Callers that ask again while a check runs get the answer of that one."""
        key = (project, identifier)
        task = self._verifying.get(key)
        if task is None:
            task = self._verifying[key] = asyncio.create_task(self._verify(project, identifier))
            task.add_done_callback(lambda _: self._verifying.pop(key, None))
        return await asyncio.shield(task)

    async def _verify(self, project: str, identifier: str | None) -> dict[str, Any]:
        everything = project == SYSTEM_PROJECT and identifier is None
        verdict = await verify_log(self._nc, project=None if everything else project, id=identifier)
        faults = [{"seq": f.seq, "subject": f.subject, "what": f.what} for f in verdict.findings[:FAULTS]]
        counted = {"commits": verdict.commits, "events": verdict.events, "aggregates": verdict.aggregates}
        return {"intact": verdict.ok, **counted, "faults": faults, "more_faults": len(verdict.findings) > FAULTS}


@asynccontextmanager
async def _signals(tail: Tail[Message], ready: asyncio.Queue[Sequence[Message] | None]) -> AsyncGenerator[None, None]:
    """Wake the reader when the tail has caught up without a message, or ended."""

    async def caught_up() -> None:
        await tail.caught_up.wait()
        await ready.put([])

    async def ended() -> None:
        with contextlib.suppress(Exception):  # the reader asks the tail itself and gets it there
            await tail.wait()
        await ready.put(None)

    tasks = [asyncio.create_task(caught_up()), asyncio.create_task(ended())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
