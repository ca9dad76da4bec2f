"""Rebuilding a view: the log is replayed into a new generation beside the live one, which takes its place in one transaction.

Nobody notices: queries and live batches go on meanwhile, and the new generation is switched to only when it has read at least as far as
the live one. With ``until`` the result is a copy as of that position instead: it stays beside the live view, and is read by its number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from domain.kernel.errors import Refused
from projections.engine import Engine, Message
from projections.live import Live
from projections.log import Log
from projections.store import Generation, Role, Store
from projections.view import View

log = structlog.get_logger(__name__)

SAVE_ITEMS: Final = 10_000
"""Changed items per transaction of a rebuild; live batches wait that long at most, some tens of milliseconds."""
COPIES: Final = 4
"""Copies as of a position that are kept per view; an older one goes when another is made."""


@dataclass(slots=True)
class Progress:
    """How far a rebuild is: ``position`` of about ``target``. ``state``: ``running``, ``done`` or ``failed``."""

    view: str
    generation: int
    position: int = 0
    target: int = 0
    until: int | None = None
    state: str = "running"
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("view", "generation", "position", "target", "until", "state", "error")}


Watcher = Callable[[Progress], None]


class Rebuilder:
    """Runs rebuilds, one per view at a time."""

    def __init__(self, store: Store, views: Mapping[str, View], log_: Log, live: Live) -> None:
        self._store = store
        self._views = views
        self._log = log_
        self._live = live
        self._tasks: dict[str, asyncio.Task[Generation]] = {}
        self._busy: set[str] = set()
        self.progress: dict[str, Progress] = {}

    async def start(self, view: str, until: int | None = None, watch: Watcher | None = None) -> tuple[int, asyncio.Task[Generation]]:
        """Begin, and return the new generation's number and the task that ends when it is live (or, with ``until``, complete).

        Raises ``view.not-found``, and ``view.rebuilding`` (retryable) while another rebuild of the view runs.
        """
        if view not in self._views:
            raise Refused("view.not-found", f"no view {view!r}", details={"views": sorted(self._views)})
        if view in self._busy:
            known = self.progress.get(view)
            details = {"generation": known.generation} if known else {}
            raise Refused("view.rebuilding", f"{view} is being rebuilt already", retryable=True, details=details)
        self._busy.add(view)
        try:
            return await self._begin(view, until, watch or _silent)
        except BaseException:
            self._busy.discard(view)
            raise

    async def _begin(self, view: str, until: int | None, watch: Watcher) -> tuple[int, asyncio.Task[Generation]]:
        definition = self._views[view]
        role = Role.BUILDING if until is None else Role.COPY
        target = await self._log.last() if until is None else until
        async with self._live.lock:
            made = await self._live.blocking(self._store.create, view, definition.schema, role)
        progress = self.progress[view] = Progress(view, made.number, target=target, until=until)
        task = self._tasks[view] = asyncio.create_task(self._run(definition, made, progress, watch))
        task.add_done_callback(lambda _: self._busy.discard(view))
        task.add_done_callback(_retrieve)
        return made.number, task

    async def _run(self, view: View, made: Generation, progress: Progress, watch: Watcher) -> Generation:
        try:
            done = await (self._replace(view, made, progress, watch) if progress.until is None else self._copy(view, made, progress, watch))
        except BaseException as error:
            await self._give_up(progress, error)
            raise
        progress.state = "done"
        watch(progress)
        log.info("view.rebuilt", view=view.name, generation=done.number, position=done.position)
        return done

    async def _replace(self, view: View, made: Generation, progress: Progress, watch: Watcher) -> Generation:
        engine = self._engine(view, made)
        indexed = False
        async with aclosing(self._log.batches(0)) as batches:
            while True:
                if engine.cursor >= self._live.engine.cursor:
                    if not indexed:
                        await self._finish(engine, view, made)
                        indexed = True
                    if (done := await self._switch(engine, view)) is not None:
                        return done
                await self._apply(engine, (await anext(batches)).messages, progress, watch)

    async def _switch(self, engine: Engine, view: View) -> Generation | None:
        """Take the live one's place, unless that has moved on meanwhile."""
        async with self._live.lock:
            if engine.cursor < self._live.engine.cursor:
                return None
            await self._live.blocking(engine.save)
            await self._live.blocking(self._live.engine.save)
            (target,) = engine.targets.values()
            former = await self._live.replace(view.name, target)
            for old in former:
                await self._live.blocking(self._store.drop, old.view, old.number)
            return replace(target.generation, position=target.position, role=Role.LIVE)

    async def _copy(self, view: View, made: Generation, progress: Progress, watch: Watcher) -> Generation:
        engine, until = self._engine(view, made), progress.until or 0
        async with aclosing(self._log.batches(0)) as batches:
            while engine.cursor < until:
                messages = (await anext(batches)).messages
                await self._apply(engine, [m for m in messages if m[0] <= until], progress, watch)
        await self._finish(engine, view, made)
        async with self._live.lock:
            for old in self._old_copies(view.name):
                await self._live.blocking(self._store.drop, old.view, old.number)
        return replace(made, position=until)

    def _old_copies(self, view: str) -> list[Generation]:
        copies = [g for g in self._store.generations() if g.view == view and g.role is Role.COPY]
        return copies[:-COPIES]

    def _engine(self, view: View, made: Generation) -> Engine:
        engine = Engine(self._store, [view])
        engine.attach(made)
        return engine

    async def _apply(self, engine: Engine, messages: Sequence[Message], progress: Progress, watch: Watcher) -> None:
        async with self._live.lock:
            await self._live.apply(engine, messages)
            if engine.dirty >= SAVE_ITEMS:
                await self._live.blocking(engine.save)
        _unbroken(engine)
        progress.position = engine.cursor
        progress.target = max(progress.target, progress.position)
        watch(progress)

    async def _finish(self, engine: Engine, view: View, made: Generation) -> None:
        """Save, and make filters fast, before anybody reads it."""
        async with self._live.lock:
            await self._live.blocking(engine.save)
            await self._live.blocking(self._store.index, view.name, made.number, view.indexed)

    async def close(self) -> None:
        """Give up what is being built; it is begun anew when somebody asks again."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for progress in self.progress.values():
            if progress.state == "running":  # cancelled before it began
                await self._give_up(progress, asyncio.CancelledError())

    async def _give_up(self, progress: Progress, error: BaseException) -> None:
        progress.state, progress.error = "failed", repr(error)[:300]
        log.warning("view.rebuild-failed", view=progress.view, generation=progress.generation, error=progress.error)
        async with self._live.lock:
            await self._live.blocking(self._store.drop, progress.view, progress.generation)


def _unbroken(engine: Engine) -> None:
    for target in engine.targets.values():
        if target.broken is not None:
            raise Refused("view.broken", f"{target.view.name} cannot be rebuilt: {target.broken}")


def _silent(_progress: Progress) -> None:
    """Nobody watches."""


def _retrieve(task: asyncio.Task[Generation]) -> None:
    """Its end was logged; whoever waits for it sees it too."""
    if not task.cancelled():
        task.exception()
