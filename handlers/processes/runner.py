"""Runs process managers: on events, and by a watchdog for what has stopped moving."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Final

import structlog

from bus.commit import Commit
from domain.kernel.errors import Refused
from handlers.control import Because, Control, because
from handlers.fleet import Key

log = structlog.get_logger(__name__)

Pump = Callable[[Control, str, str], Awaitable[None]]
"""(control, project, id): look at the aggregate and do what comes next."""

AHEAD: Final = frozenset({"sandbox"})
"""Types of aggregates whose processes move as soon as this control plane has stored a commit."""
REMEMBERED: Final = 4096


class Processes:
    """Which pump moves which type of aggregate, and which other aggregates an event concerns."""

    def __init__(self, control: Control, pumps: dict[str, Pump], concerns: Callable[[Control, Commit], Iterable[Key]]) -> None:
        self._control = control
        self._pumps = pumps
        self._concerns = concerns
        self._running: dict[Key, asyncio.Lock] = {}
        self._moved: OrderedDict[Key, int] = OrderedDict()
        """For which commit each was moved last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_commit(self, commit: Commit) -> None:
        """An event happened; raises what a pump raised, so that the event is delivered again."""
        own = (commit.type, commit.project, commit.id)
        await self.pump(own, commit.seq)
        for key in dict.fromkeys(self._concerns(self._control, commit)):
            if key != own:
                await self.pump(key)

    async def pump(self, key: Key, seq: int | None = None) -> None:
        """Move one process; never twice at a time in this control plane, and not twice for a commit."""
        pump = self._pumps.get(key[0])
        if pump is None:
            return
        lock = self._running.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if seq is None or self._moved.get(key, 0) < seq:
                    await pump(self._control, key[1], key[2])
                if seq is not None and key[0] in AHEAD:
                    self._remember(key, seq)
        finally:
            if not lock.locked():
                self._running.pop(key, None)

    def ahead(self, key: Key, seq: int, why: Because) -> None:
        """Move a process that a commit of this control plane concerns, before the log brings the commit back.

        That saves the way there and back; it is the event that makes sure. Only for those that need nothing from the fleet index, which
        may not have the commit yet.
        """
        if key[0] not in AHEAD:
            return
        task = asyncio.create_task(self._pump_ahead(key, seq, why))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump_ahead(self, key: Key, seq: int, why: Because) -> None:
        try:
            with because(why.commit, why.trace):
                await self.pump(key, seq)
        except Exception as error:  # noqa: BLE001 - the event brings it again, and then somebody is told
            log.info("process.not-ahead", key=key, error=repr(error)[:300])

    def _remember(self, key: Key, seq: int) -> None:
        self._moved[key] = max(seq, self._moved.get(key, 0))
        if len(self._moved) > REMEMBERED:
            self._moved.popitem(last=False)

    async def close(self) -> None:
        """Leave what is being moved ahead to the events."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
