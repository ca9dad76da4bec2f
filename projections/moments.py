"""Views as of an earlier position: replayed into memory when somebody asks, and kept for a while for who asks again (``as_of``)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

from domain.kernel.errors import Refused
from projections.engine import Engine
from projections.log import Log
from projections.memory import MemoryStore
from projections.view import View

MOMENTS: Final = 8
"""How many (view, position) are kept."""
ITEMS_KEPT: Final = 200_000
"""How many items they may have together before the oldest go; the newest is always kept."""
DIRTY: Final = 20_000
"""Items that are held as objects before they are put away as text."""
PATIENCE_S: Final = 8.0
"""How long one query waits for a replay; it goes on without it, for the next one."""


class Moments:
    """Builds and keeps views as of positions."""

    def __init__(self, log: Log, views: Mapping[str, View]) -> None:
        self._log = log
        self._views = views
        self._built: OrderedDict[tuple[str, int], MemoryStore] = OrderedDict()
        self._building: dict[tuple[str, int], asyncio.Task[MemoryStore]] = {}

    async def at(self, view: str, position: int) -> MemoryStore:
        """A store with the view as it was when the log ended at ``position``. Raises ``view.building`` (retryable) when that takes long."""
        key = (view, position)
        if key in self._built:
            self._built.move_to_end(key)
            return self._built[key]
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = asyncio.create_task(self._build(view, position))
            task.add_done_callback(lambda _: self._building.pop(key, None))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise Refused("view.building", f"{view} as of {position} is still being replayed", retryable=True) from None

    async def _build(self, view: str, position: int) -> MemoryStore:
        store = MemoryStore()
        engine = Engine(store, [self._views[view]])
        engine.open()
        async with aclosing(self._log.batches(0)) as batches:
            while engine.cursor < position:
                batch = await anext(batches)
                engine.apply([message for message in batch.messages if message[0] <= position])
                if engine.dirty > DIRTY:
                    engine.save()
        engine.save()
        broken = [target.broken for target in engine.targets.values() if target.broken]
        if broken:
            raise Refused("view.broken", f"{view} cannot be replayed up to {position}: {broken[0]}")
        self._keep((view, position), store)
        return store

    def _keep(self, key: tuple[str, int], store: MemoryStore) -> None:
        self._built[key] = store
        while len(self._built) > 1 and (len(self._built) > MOMENTS or sum(map(len, self._built.values())) > ITEMS_KEPT):
            self._built.popitem(last=False)

    async def close(self) -> None:
        """Stop what is being built."""
        for task in list(self._building.values()):
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)
