"""Loading an aggregate: from its last message when that is all there is, else from a snapshot and the commits after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, TypeVar

from bus import subjects
from bus.cache import Key, Loaded
from bus.commit import Commit, Corrupt, decode
from bus.direct import Reader
from bus.replies import UnansweredError
from bus.snapshots import Snapshots
from domain.kernel.aggregate import Aggregate

A = TypeVar("A", bound=Aggregate)

CATCH_UP: Final = 200
CATCH_UP_PAUSE_S: Final = 0.005
"""A follower that answers a direct get lags by 1 ms or so (reference/jetstream-eventstore.md §1.4)."""


class BehindError(UnansweredError):
    """The server that answered has not yet got what is known to be stored."""


def fold(loaded: Loaded[A], commits: Iterable[Commit]) -> Loaded[A]:
    """``loaded`` and what happened after it. Raises ``Corrupt`` when the commits do not follow it, ``LookupError`` for unknown events."""
    aggregate: Any = loaded.aggregate
    version, seq, head, commands = loaded.version, loaded.seq, loaded.head, dict(loaded.commands)
    for commit in commits:
        if commit.prev != head or commit.events[0]["version"] != version + 1:
            raise Corrupt(f"commit {commit.commit} of {commit.type} {commit.id} (message {commit.seq}) does not follow the one before it")
        for event in commit.decoded():
            aggregate = event.mutate(aggregate)
        version, seq, head = commit.version, commit.seq, commit.hash
        commands[commit.command] = seq
    return Loaded(aggregate, version, seq, head, commands)


class Loader:
    """Reads aggregates from the log. Raises ``UnansweredError`` when the bus does not answer, ``Corrupt`` when a chain is broken."""

    def __init__(self, reader: Reader, snapshots: Snapshots) -> None:
        self._reader = reader
        self._snapshots = snapshots

    async def load(self, cls: type[A], key: Key, at_least: int = 0) -> Loaded[A]:
        """The aggregate at position ``at_least`` or later: a follower that is behind is asked again."""
        for _ in range(CATCH_UP):
            try:
                return await self._load(cls, key, at_least)
            except BehindError:
                await asyncio.sleep(CATCH_UP_PAUSE_S)
        raise BehindError(f"no server has message {at_least} of {key}")

    async def _load(self, cls: type[A], key: Key, at_least: int) -> Loaded[A]:
        subject = subjects.event(*key)
        last = await self._reader.last(subject)
        if (last.seq if last else 0) < at_least:
            raise BehindError(subject)
        nothing: Loaded[A] = Loaded(None)
        if last is None:
            return nothing
        newest = decode(last.data, last.seq)
        if newest.events[0]["version"] == 1:
            return fold(nothing, [newest])
        start = await self._from_snapshot(cls, key, newest)
        loaded = fold(start, await self.commits(subject, start.seq + 1))
        if loaded.seq < newest.seq:
            raise BehindError(subject)
        return loaded

    async def _from_snapshot(self, cls: type[A], key: Key, newest: Commit) -> Loaded[A]:
        """A snapshot that belongs to this log, or nothing: it is a cache, and may be of another class, another log, or gone."""
        snapshot = await self._snapshots.get(cls, key, newest.version)
        if snapshot is None or snapshot.seq > newest.seq:
            return Loaded(None)
        page = await self._reader.page(subjects.event(*key), snapshot.seq, 1)
        if not page.messages or page.messages[0].seq != snapshot.seq:
            return Loaded(None)
        commit = decode(page.messages[0].data, snapshot.seq)
        return snapshot if (commit.hash, commit.version) == (snapshot.head, snapshot.version) else Loaded(None)

    async def commits(self, subject: str, seq: int = 1) -> list[Commit]:
        """Every commit on ``subject`` from position ``seq`` on."""
        return [decode(message.data, message.seq) async for message in self._reader.all(subject, seq)]


def after(loaded: Loaded[A], aggregate: A, commit_seq: int, head: str, command: str) -> Loaded[A]:
    """``loaded`` with one more commit. The map of commands is shared, not copied: it only grows, and only by what is stored."""
    loaded.commands[command] = commit_seq
    return replace(loaded, aggregate=aggregate, version=aggregate.version, seq=commit_seq, head=head)
