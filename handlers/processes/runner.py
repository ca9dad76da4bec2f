"""Runs process managers: on events, and by a watchdog for what has stopped moving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta

import structlog

from bus.commit import Commit
from domain.kernel.errors import Refused
from handlers.control import Control
from handlers.fleet import Key

log = structlog.get_logger(__name__)

Pump = Callable[[Control, str, str], Awaitable[None]]
"""(control, project, id): look at the aggregate and do what comes next."""


class Processes:
    """Which pump moves which type of aggregate, and which other aggregates an event concerns."""

    def __init__(self, control: Control, pumps: dict[str, Pump], concerns: Callable[[Control, Commit], Iterable[Key]]) -> None:
        self._control = control
        self._pumps = pumps
        self._concerns = concerns
        self._running: dict[Key, asyncio.Lock] = {}

    async def on_commit(self, commit: Commit) -> None:
        """An event happened; raises what a pump raised, so that the event is delivered again."""
        for key in dict.fromkeys([(commit.type, commit.project, commit.id), *self._concerns(self._control, commit)]):
            await self.pump(key)

    async def pump(self, key: Key) -> None:
        """Move one process; never twice at a time in this control plane."""
        pump = self._pumps.get(key[0])
        if pump is None:
            return
        lock = self._running.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                await pump(self._control, key[1], key[2])
        finally:
            if not lock.locked():
                self._running.pop(key, None)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The watchdog runs while the block does."""
        task = asyncio.create_task(self._watch(), name="watchdog")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        """For ever: pump what was opened a while ago and is not finished (design.md §10.4)."""
        period = self._control.deadlines.watchdog_s
        while True:
            await asyncio.sleep(period)
            before = self._control.clock() - timedelta(seconds=period)
            for key in self._control.fleet.open_since(before):
                try:
                    await self.pump(key)
                except Refused as refusal:
                    log.info("watchdog.refused", key=key, code=refusal.code)
                except Exception:
                    log.exception("watchdog.failed", key=key)
