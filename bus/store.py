"""The event store: load an aggregate, let it decide, append what it recorded; once per command, whatever fails on the way (design.md §4).

Rules that all of it serves:
1. A command id acts once per aggregate. Every commit carries the id, so this holds for ever and in every process.
2. A decision sees the aggregate as committed, works on a clone, and holds the aggregate's lock until its commit is stored.
3. An answer of "no" or "nothing to do" is only given on a state that the leader confirms as the newest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar

from nats.aio.client import Client

from bus import subjects
from bus.append import Appender, ConflictError, Entry
from bus.cache import A, Cache, Key, Loaded, Locks, clone
from bus.commit import Commit, decode, encode
from bus.direct import PAGE, Reader
from bus.fast import open_publisher
from bus.loading import Loader, after
from bus.replies import UnansweredError
from bus.requests import Publisher
from bus.snapshots import Snapshots
from domain.kernel.aggregate import Event
from domain.kernel.command import Cause
from domain.kernel.errors import Refused

__all__ = ["Committed", "Loaded", "Part", "Store"]

T = TypeVar("T")

ATTEMPTS: Final = 50
"""Decisions per command before giving up: only other processes can make one lose, and one of them wins every time."""
PATIENCE_S: Final = 15.0
FLOORS: Final = 10_000
"""Aggregates whose last position is remembered from the log: those that changed in the last moments."""

Decide = Callable[[A | None], A]
Reply = Callable[[A], dict[str, Any]]
Listener = Callable[[Key, int, str, str | None], None]


@dataclass(frozen=True, slots=True)
class Part(Generic[A]):
    """One aggregate's share in a change. ``decide`` may be called several times and must depend on nothing but its argument.

    ``new``: it hardly exists already, so it is not looked for first; the log says if it does, and then it is loaded after all.
    """

    cls: type[A]
    project: str
    id: str
    decide: Decide[A]
    reply: Reply[A] | None = None
    new: bool = False

    @property
    def key(self) -> Key:
        return Key(self.project, self.cls.TOPIC, self.id)


@dataclass(frozen=True, slots=True)
class Committed(Generic[A]):
    """What became of a decision. ``aggregate`` is shared: read it, never call a deciding method on it.

    ``seq`` is where the command's commit stands, or the aggregate's last one when nothing was recorded. ``changed``: this call stored a
    commit. ``replayed``: an earlier call with the same command id did; ``reply`` is then the stored one, and ``aggregate`` what it is now.
    """

    aggregate: A
    seq: int
    replayed: bool = False
    changed: bool = False
    reply: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Decided:
    """One aggregate's decision, not yet stored. ``entry`` is None when nothing was recorded."""

    part: Part[Any]
    loaded: Loaded[Any]
    aggregate: Any
    reply: dict[str, Any]
    head: str
    entry: Entry | None


class Store:
    """Aggregates over the stream EVENTS. One per process; ``await Store.open(nc)`` makes its own publisher.

    ``cache_size`` counts aggregates, ``snapshot_every`` versions (0: none), ``patience_s`` how long a commit is tried to be stored.
    """

    def __init__(
        self, nc: Client, publisher: Publisher, *, cache_size: int = 20_000, snapshot_every: int = 100, patience_s: float = PATIENCE_S
    ) -> None:
        self.nc = nc
        self.publisher = publisher
        self._reader = Reader(publisher, subjects.EVENTS)
        self._snapshots = Snapshots(publisher, snapshot_every)
        self._loader = Loader(self._reader, self._snapshots)
        self._appender = Appender(publisher, self._reader, patience_s)
        self._cache = Cache(cache_size)
        self._locks = Locks()
        self._listener: Listener = _nobody
        self._floors: OrderedDict[Key, int] = OrderedDict()

    @classmethod
    async def open(cls, nc: Client, **settings: Any) -> Self:
        """A store with a publisher of its own."""
        return cls(nc, open_publisher(nc), **settings)

    async def close(self) -> None:
        """Finish what is being written in the background."""
        await self._snapshots.flush()
        await self._reader.close()
        await self.publisher.close()

    # -- reading

    async def load(self, cls: type[A], project: str, id: str) -> Loaded[A]:  # noqa: A002
        """The aggregate, from memory or from the log. Raises ``Refused("bus.unavailable")``, ``Corrupt``."""
        return await self._load(cls, Key(project, cls.TOPIC, id))

    def peek(self, cls: type[A], project: str, id: str) -> A | None:  # noqa: A002
        """The aggregate if it is in memory; it may be a commit of another process behind."""
        known = self._cache.get(Key(project, cls.TOPIC, id))
        return None if known is None else known.aggregate

    def on_stored(self, listener: Listener) -> None:
        """Tell ``listener`` which aggregates this store changes, before the log brings the commits back: (key, position, commit, trace)."""
        self._listener = listener

    async def read(self, project: str, kind: str, id: str) -> list[Commit]:  # noqa: A002
        """Every commit of one aggregate. Raises ``Refused("bus.unavailable")``."""
        return await self._patiently(lambda: self._loader.commits(subjects.event(project, kind, id)))

    async def read_all(self, after: int = 0, filters: Sequence[str] = (subjects.ALL_EVENTS,), limit: int = PAGE) -> list[Commit]:
        """The first ``limit`` commits after position ``after`` on any of ``filters``, in the order of the log."""
        found: dict[int, Commit] = {}
        for subject in filters:
            for message in await self._patiently(partial(self._first, subject, after + 1, limit)):
                found[message.seq] = decode(message.data, message.seq)
        return [found[seq] for seq in sorted(found)][:limit]

    async def position(self) -> int:
        """The log's last position."""
        return await self._patiently(self._reader.position)

    def saw(self, commit: Commit) -> None:
        """Told of a commit by whoever follows the log: an aggregate that another process changed is not served from memory any more."""
        key = Key(commit.project, commit.type, commit.id)
        self._cache.drop(key, older_than=commit.seq)
        # A follower may not have it yet: without the floor a load right now could bring the old state back, and nobody would look again.
        self._floors[key] = commit.seq
        self._floors.move_to_end(key)
        if len(self._floors) > FLOORS:
            self._floors.popitem(last=False)

    # -- deciding

    async def transact(
        self,
        cls: type[A],
        project: str,
        id: str,  # noqa: A002
        decide: Decide[A],
        cause: Cause,
        reply: Reply[A] | None = None,
        *,
        new: bool = False,
    ) -> Committed[A]:
        """Let one aggregate decide, and store what it recorded.

        Raises what ``decide`` raises, ``Refused("command.mismatch")`` when the command id was used with another body, and
        ``Refused("bus.unavailable")`` when it is not known whether the commit was stored; the same command id then finds out.
        """
        return (await self.transact_many([Part(cls, project, id, decide, reply, new)], cause))[0]

    async def transact_many(self, parts: Sequence[Part[Any]], cause: Cause) -> list[Committed[Any]]:
        """The same over several aggregates: all of it is stored, or nothing. They decide in the order given.

        The command counts as done when any of them has it in its history. A part that records nothing is not guarded against change.
        """
        keys = [part.key for part in parts]
        if len(set(keys)) != len(keys):
            raise ValueError(f"an aggregate can have one part only: {keys}")
        async with self._locks.hold(keys):
            return await self._transact(parts, cause)

    async def _transact(self, parts: Sequence[Part[Any]], cause: Cause) -> list[Committed[Any]]:
        floors = [0] * len(parts)
        tried = False
        for _ in range(ATTEMPTS):
            loaded = [await self._before(part, floor) for part, floor in zip(parts, floors, strict=True)]
            without = [cause.command not in entry.commands for entry in loaded]
            if not all(without):
                if newer := await self._newer(parts, loaded, floors, without):
                    floors = newer
                    continue
                return [await self._replayed(part, entry, cause, tried) for part, entry in zip(parts, loaded, strict=True)]
            try:
                decided = [_decide(part, entry, cause) for part, entry in zip(parts, loaded, strict=True)]
            except Refused:
                decided = []
                if not (newer := await self._newer(parts, loaded, floors)):
                    raise
            else:
                newer = await self._newer(parts, loaded, floors, [d.entry is None for d in decided])
            if newer:
                floors = newer
                continue
            tried = True
            try:
                return await self._store(decided, cause)
            except ConflictError as conflict:
                moved = dict(zip((d.part.key for d in decided if d.entry), conflict.seqs, strict=True))
                floors = [moved.get(part.key, floor) for part, floor in zip(parts, floors, strict=True)]
        raise UnansweredError(f"{parts[0].key} changes faster than this decision can be made")

    async def _store(self, decided: Sequence[_Decided], cause: Cause) -> list[Committed[Any]]:
        entries = [d.entry for d in decided if d.entry is not None]
        try:
            seqs = iter(await self._appender.append(entries) if entries else ())
        except BaseException:  # refused, unknown or cancelled: what the log has now is not what is in memory
            for d in decided:
                self._cache.drop(d.part.key)
            raise
        return [self._committed(d, next(seqs), cause) if d.entry else Committed(d.aggregate, d.loaded.seq, reply=d.reply) for d in decided]

    def _committed(self, d: _Decided, seq: int, cause: Cause) -> Committed[Any]:
        entry = after(d.loaded, d.aggregate, seq, d.head, cause.command)
        self._cache.put(d.part.key, entry)
        self._snapshots.consider(d.part.key, entry, d.loaded.version)
        self._listener(d.part.key, seq, "" if d.entry is None else d.entry.commit_id, cause.trace)
        return Committed(d.aggregate, seq, changed=True, reply=d.reply)

    async def _replayed(self, part: Part[Any], loaded: Loaded[Any], cause: Cause, tried: bool) -> Committed[Any]:
        """The answer that the command got before. ``tried``: it was this very call, whose acknowledgement got lost."""
        seq = loaded.commands.get(cause.command)
        if seq is None:  # it recorded nothing here
            reply = part.reply(loaded.aggregate) if part.reply and loaded.aggregate else {}
            return Committed(loaded.aggregate, loaded.seq, replayed=not tried, reply=reply)
        stored = await self._patiently(partial(self._reader.leader_at, seq))
        commit = decode(stored.data, seq)
        if commit.digest != cause.digest:
            raise Refused("command.mismatch", "this command id was used for another command or another body")
        return Committed(loaded.aggregate, seq, replayed=not tried, changed=tried, reply=commit.reply or {})

    async def _newer(
        self, parts: Sequence[Part[Any]], loaded: Sequence[Loaded[Any]], floors: Sequence[int], which: Sequence[bool] | None = None
    ) -> list[int] | None:
        """The leader's last positions, if any aggregate (of ``which``) has gone on since it was loaded.

        One that was loaded because the leader had told its position is not asked for again.
        """
        seqs = list(floors)
        for i, (part, entry) in enumerate(zip(parts, loaded, strict=True)):
            if (which is None or which[i]) and not 0 < floors[i] <= entry.seq:
                seqs[i] = await self._patiently(partial(self._last_seq, part.key))
        return None if all(seq <= entry.seq for seq, entry in zip(seqs, loaded, strict=True)) else seqs

    # -- helpers

    async def _before(self, part: Part[A], at_least: int) -> Loaded[A]:
        """What a part is to decide about."""
        if part.new and not at_least and self._cache.get(part.key) is None:
            return Loaded(None)
        return await self._load(part.cls, part.key, at_least)

    async def _load(self, cls: type[A], key: Key, at_least: int = 0) -> Loaded[A]:
        at_least = max(at_least, self._floors.get(key, 0))
        known = self._cache.get(key)
        if known is not None and known.seq >= at_least:
            return known
        loaded = await self._patiently(lambda: self._loader.load(cls, key, at_least))
        self._cache.put(key, loaded)
        return loaded

    async def _last_seq(self, key: Key) -> int:
        last = await self._reader.leader_last(subjects.event(*key))
        return last.seq if last else 0

    async def _first(self, subject: str, seq: int, limit: int) -> list[Any]:
        found: list[Any] = []
        while seq and len(found) < limit:
            page = await self._reader.page(subject, seq, min(PAGE, limit - len(found)))
            found += page.messages
            seq = page.next_seq
        return found

    async def _patiently(self, read: Callable[[], Awaitable[T | None]]) -> T:
        return await self._appender.patiently(read)


def _nobody(_key: Key, _seq: int, _commit: str, _trace: str | None) -> None:
    """The listener of a store that has none."""


def _decide(part: Part[Any], loaded: Loaded[Any], cause: Cause) -> _Decided:
    """Raises what the decision raises, and ``ValueError`` when it does not continue the aggregate it was given."""
    aggregate = part.decide(clone(loaded.aggregate))
    events: list[Event] = list(aggregate.collect_events())
    reply = part.reply(aggregate) if part.reply else {}
    if not events:
        return _Decided(part, loaded, loaded.aggregate, reply, loaded.head, None)
    versions = [event.originator_version for event in events]
    if aggregate.id != part.id or versions != list(range(loaded.version + 1, loaded.version + len(events) + 1)):
        raise ValueError(f"{aggregate.id} at versions {versions} does not continue {part.key} at version {loaded.version}")
    owner = cause if cause.project == part.project else replace(cause, project=part.project)
    data, commit_id, head = encode(part.cls.TOPIC, part.id, events, owner, loaded.head, reply)
    return _Decided(part, loaded, aggregate, reply, head, Entry(subjects.event(*part.key), data, commit_id, loaded.seq))
