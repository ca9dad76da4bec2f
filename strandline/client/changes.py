"""Waking up when something has changed: the log tells, and a tick makes sure that nothing told is nothing missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from strandline.client.call import Calls
from strandline.client.tail import commits, position

TICK_S: Final = 5.0
"""How often a watcher looks although nothing was told: for views that move without the log."""
DEAF_TICK_S: Final = 1.0
"""The same for a connection that may not read the log."""
SYSTEM_KINDS: Final = frozenset({"node", "artifact"})


async def changes(calls: Calls, *kinds: str, id: str | None = None) -> AsyncGenerator[int, None]:  # noqa: A002 - the contract's name
    """A log position now, and again after every change; several changes at once are one. Queries made meanwhile see what was told."""
    moved = asyncio.Event()
    async with _listening(calls, _filters(calls.project, kinds, id), moved) as tick:
        while True:
            yield calls.seen
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick):
                    await moved.wait()
            moved.clear()


def _filters(project: str, kinds: Sequence[str], identifier: str | None) -> list[str]:
    if not kinds:
        return [f"strand.evt.{project}.>"]
    owners = {kind: SYSTEM_PROJECT if kind in SYSTEM_KINDS else project for kind in kinds}
    return [f"strand.evt.{owner}.{kind}.{identifier or '*'}" for kind, owner in owners.items()]


@contextlib.asynccontextmanager
async def _listening(calls: Calls, filters: list[str], moved: asyncio.Event) -> AsyncIterator[float]:
    """Set ``moved`` whenever the log goes on. The position is taken first: what happens from here on is told."""
    try:
        after = await position(calls.nc)
    except Refused:
        yield DEAF_TICK_S
        return

    async def listen() -> None:
        async with contextlib.aclosing(commits(calls.nc, after, filters)) as batches:
            async for batch in batches:
                calls.note({"seq": batch[-1].seq})
                moved.set()

    listener = asyncio.create_task(listen())
    try:
        yield TICK_S
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
