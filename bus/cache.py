"""Aggregates in memory: as committed, bounded, and one decision at a time.

A decision works on a clone. What is cached is only ever what the log says, so a decision that is refused, loses a race or is cancelled
half way leaves nothing behind, and readers never see what is not stored (reference/jetstream-eventstore.md §2.4 shows the corruption
that a shared mutable object leads to).
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar

from bus.commit import GENESIS
from domain.kernel.aggregate import Aggregate, Record

A = TypeVar("A", bound=Aggregate)


class Key(NamedTuple):
    """Which aggregate. Sorts, so that several locks are always taken in one order."""

    project: str
    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[A]):
    """An aggregate as the log has it. ``aggregate`` is shared by all who load it: read it, never call a deciding method on it.

    ``version`` counts events, ``seq`` is the position of the last commit (0: none) and ``head`` its hash; ``commands`` maps the id of every
    command in its history to the commit's position.
    """

    aggregate: A | None
    version: int = 0
    seq: int = 0
    head: str = GENESIS
    commands: dict[str, int] = field(default_factory=dict)


class Cache:
    """The most recently used aggregates."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, Loaded[Any]] = OrderedDict()

    def get(self, key: Key) -> Loaded[Any] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Loaded[Any]) -> None:
        """Keep ``entry``, unless what is kept is newer or nothing exists yet: ids that were asked for in vain must not fill the memory."""
        known = self._entries.get(key)
        if entry.aggregate is None or (known is not None and known.seq > entry.seq):
            return
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def drop(self, key: Key, older_than: int | None = None) -> None:
        """Forget ``key``; with ``older_than``, only if what is kept ends before that position."""
        entry = self._entries.get(key)
        if entry is not None and (older_than is None or entry.seq < older_than):
            del self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)


class Locks:
    """One lock per aggregate that somebody is deciding about."""

    def __init__(self) -> None:
        self._locks: dict[Key, _Lock] = {}

    @asynccontextmanager
    async def hold(self, keys: Iterable[Key]) -> AsyncIterator[None]:
        """Hold all of ``keys``, taken in order so that two holders cannot wait for each other."""
        held: list[tuple[Key, _Lock]] = []
        try:
            for key in sorted(keys):
                lock = self._locks.setdefault(key, _Lock())
                lock.users += 1
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(key, lock)
                    raise
                held.append((key, lock))
            yield
        finally:
            for key, lock in held:
                lock.release()
                self._leave(key, lock)

    def _leave(self, key: Key, lock: _Lock) -> None:
        lock.users -= 1
        if not lock.users:
            del self._locks[key]

    def __len__(self) -> int:
        return len(self._locks)


class _Lock(asyncio.Lock):
    """A lock that counts who holds it or waits for it."""

    users = 0


_SHARED: Final = (str, int, float, bool, bytes, type(None), datetime, timedelta, Enum, Record)
"""What cannot change, or by the house's rules does not: frozen records are replaced, never edited."""
_shared: Final[set[type]] = set()
"""The types of these that were met: to look a type up is faster than to ask for its ancestors."""


def clone(aggregate: A | None) -> A | None:
    """A copy that a decision may change. Containers are copied, the immutable values in them are not: 40 times as fast as ``deepcopy``."""
    if aggregate is None:
        return None
    twin = type(aggregate).__new__(type(aggregate))
    shared = _shared
    twin.__dict__.update({name: value if type(value) in shared else _copy(value) for name, value in aggregate.__dict__.items()})
    return twin


def _copy(value: Any) -> Any:
    kind, shared = type(value), _shared
    if kind is dict:
        return {key: item if type(item) in shared else _copy(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind([item if type(item) in shared else _copy(item) for item in value])
    if kind is set or kind is frozenset:
        return kind(value)
    if isinstance(value, _SHARED):
        shared.add(kind)
        return value
    return copy.deepcopy(value)
