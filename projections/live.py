"""The live views: one reader of the log, every view brought forward by it, each batch one transaction.

While there is more to read than can be shown (start-up, a burst) batches are applied together and saved in large transactions; otherwise
every batch is saved at once, so that what was written is seen in under a millisecond or two. When the store fails, nothing of the batch
has happened: it is read again, after a pause that grows, and queries go on with what there is (design.md §10.6).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import structlog

from bus.tracing import Tracing
from projections.engine import Engine, Message, Target
from projections.log import Batch, Log
from projections.store import Generation, Overtaken, Store
from projections.tracing import shown
from projections.view import View

log = structlog.get_logger(__name__)

T = TypeVar("T")

BULK_ITEMS: Final = 3_000
"""Changed items, over all views, that are saved at the latest; what bounds memory while catching up."""
BULK_S: Final = 0.5
"""Seconds after which a batch is saved although more is waiting."""
INLINE: Final = 500
"""Changed items that are saved on the event loop, in some 5 ms."""
PAUSES_S: Final = (0.05, 0.2, 1.0, 5.0)


class Live:
    """Moves the live generations. ``lock`` guards the engine and the store's writing side."""

    def __init__(self, store: Store, views: Iterable[View], log_: Log, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self.store = store
        self.engine = Engine(store, views)
        self.lock = asyncio.Lock()
        self.caught_up = asyncio.Event()
        self._log = log_
        self._moved = asyncio.Event()
        self._saved_at = time.monotonic()

    def open(self) -> list[View]:
        """Take up the generations that exist. Returns the views that have to be built before they can be asked."""
        return self.engine.open()

    def target(self, view: str) -> Target | None:
        """The live generation of a view, if there is one that this process moves."""
        return next((t for t in self.engine.targets.values() if t.view.name == view), None)

    async def reached(self, view: str, seq: int, within: float) -> bool:
        """Wait until the saved view has read up to ``seq``; false after ``within`` seconds."""
        deadline = asyncio.get_running_loop().time() + within
        while True:
            target = self.target(view)
            if target is not None and target.position >= seq:
                return True
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or (target is not None and target.broken is not None):
                return False
            self._log.hurry()
            moved = self._moved
            try:
                async with asyncio.timeout(left):
                    await moved.wait()
            except TimeoutError:
                return False

    def told(self) -> None:
        """Positions moved: let those who wait look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Follow the log until cancelled; nothing but cancellation ends it."""
        failures = 0
        while True:
            try:
                await self._know_the_log()
                async with aclosing(self._log.batches(self.engine.position)) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        failures = 0
            except Overtaken as overtaken:
                log.info("views.overtaken", what=str(overtaken))
                await asyncio.sleep(PAUSES_S[0])
                await self._reload()
            except Exception:
                pause = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                failures += 1
                log.exception("views.paused", seconds=pause, failures=failures)
                await asyncio.sleep(pause)
                await self._reload()

    async def _know_the_log(self) -> None:
        """Views of another log than this one are worth nothing: its positions mean other things. Begin anew then."""
        identity = await self._log.identity()
        async with self.lock:
            known = await self.blocking(self.store.identity)
            if known == identity:
                return
            if known:
                log.warning("views.another-log", known=known, found=identity)
                await self.blocking(self.engine.begin)
                self.caught_up.clear()
                self.told()
            await self.blocking(self.store.adopt, identity)

    async def _take(self, batch: Batch) -> None:
        began = time.time_ns()
        async with self.lock:
            due = not batch.more or time.monotonic() - self._saved_at >= BULK_S
            await self._work(batch.messages, due=due)
        if self._tracing is not None and due and self.caught_up.is_set():
            shown(self._tracing, batch.messages, began)
        if not batch.more and not self.caught_up.is_set():
            await self._index()
            self.caught_up.set()
            log.info("views.caught-up", position=self.engine.position)

    async def _work(self, messages: Sequence[Message], *, due: bool) -> None:
        await self.apply(self.engine, messages)
        if due or self.engine.dirty >= BULK_ITEMS:
            await self._save()
            self._saved_at = time.monotonic()
            self.told()

    async def apply(self, engine: Engine, messages: Sequence[Message]) -> None:
        """Apply a batch. On the event loop, unless the store is far: it computes, and threads that compute only get in each other's way."""
        if self.store.remote:
            await self.blocking(engine.apply, messages)
        else:
            engine.apply(messages)

    async def _save(self) -> None:
        """Small changes are saved on the event loop, which is faster; large ones in a thread, so that queries are answered meanwhile."""
        if self.store.remote or self.engine.dirty > INLINE:
            await self.blocking(self.engine.save)
        else:
            self.engine.save()

    async def flush(self) -> None:
        """Save what was applied: at the end, so that the next start has less to read."""
        try:
            async with self.lock:
                await self.blocking(self.engine.save)
        except Exception as error:  # noqa: BLE001 - the log has it all
            log.warning("views.not-saved", error=repr(error)[:300])

    async def _index(self) -> None:
        """Filters are made fast once the first replay is over; indexes would have made it slow."""
        async with self.lock:
            for target in list(self.engine.targets.values()):
                await self.blocking(
                    self.store.index, target.view.name, target.generation.number, (*target.view.indexed, *target.view.lookups)
                )

    async def _reload(self) -> None:
        try:
            async with self.lock:
                await self.blocking(self.engine.reload)
        except Exception as error:  # noqa: BLE001 - the store is still not there; the next round tries again
            log.warning("views.store-unavailable", error=repr(error)[:300])

    async def blocking(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run a store's method where it may block. The caller holds the lock.

        A thread cannot be cancelled: a cancellation waits until it is done, so that the lock, and the store, outlive it.
        """
        work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    async def replace(self, view: str, target: Target) -> list[Generation]:
        """Make a rebuilt generation the live one: switch in the store, move that one from now on. The caller holds the lock.

        Returns the generations that were live before.
        """
        former = await self.blocking(self.store.switch, view, target.generation.number)
        for old in [t for t in self.engine.targets.values() if t.view.name == view]:
            self.engine.detach(view, old.generation.number)
        self.engine.adopt(target)
        self.told()
        return former
