"""What a test of the store knows to be true: who was told what, and what therefore must be in the log."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from support.faults import Fault, FaultyPublisher, ReadFault
from support.things import Counter, adding, cause

from bus.connection import Connection
from bus.fast import open_publisher
from bus.store import Committed, Part, Store
from bus.verify import verify_log
from domain.kernel.errors import Refused


@dataclass
class Ledger:
    """Gives commands to one of several stores, and remembers what each was answered. Everything happens in one project.

    A command adds an amount to one or more counters. ``told`` holds (positions, replies) of the acknowledged ones; ``unknown`` are those
    whose caller was told nothing, which may or may not have happened.
    """

    nc: Connection
    project: str
    stores: list[Store] = field(default_factory=list)
    given: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    told: dict[str, tuple[list[int], list[dict[str, int]]]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    async def open(self, count: int = 2, **settings) -> Ledger:
        self.stores = [await self._store(**settings) for _ in range(count)]
        return self

    async def _store(self, **settings) -> Store:
        return Store(self.nc, FaultyPublisher(open_publisher(self.nc)), **{"snapshot_every": 4, "cache_size": 3, **settings})

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def inject(self, which: int, faults: Sequence[Fault], reads: Sequence[ReadFault] = ()) -> None:
        """What happens to the next publishes of one store, and to its next reads."""
        self.stores[which].publisher.faults.extend(faults)
        self.stores[which].publisher.read_faults.extend(reads)

    async def give(self, which: int, amount: int, names: Sequence[str], command: str | None = None) -> None:
        """A new command, or ``command`` once more; its answer must be the one it got before."""
        if command is None:
            command = f"c{len(self.given)}"
            self.given[command] = (amount, tuple(names))
        amount, names = self.given[command]
        parts = [
            Part(Counter, self.project, name, adding(amount, name, note=command), lambda counter: {"total": counter.total})
            for name in names
        ]
        try:
            committed = await self.stores[which].transact_many(parts, cause(command, tick=len(self.given), project=self.project))
        except Refused as refused:
            if not refused.retryable:
                raise
            self._not_told(command)
        except asyncio.CancelledError:
            self._not_told(command)
            raise
        else:
            self._told(command, committed)

    def _not_told(self, command: str) -> None:
        if command not in self.told:
            self.unknown.add(command)

    def _told(self, command: str, committed: Sequence[Committed[Counter]]) -> None:
        answer = ([c.seq for c in committed], [c.reply for c in committed])
        assert self.told.setdefault(command, answer) == answer, f"{command} was told {self.told[command]} and then {answer}"
        self.unknown.discard(command)

    async def check(self) -> None:
        """Nothing that was acknowledged is lost, nothing happened twice, chains verify, and a fresh process sees just that."""
        fresh = await self._store()
        verdict = await verify_log(self.nc, project=self.project)
        assert verdict.ok, verdict.findings
        names = {name for _, names in self.given.values() for name in names}
        stored: dict[str, list[int]] = defaultdict(list)
        for name in sorted(names):
            commits = await fresh.read(self.project, "counter", name)
            for commit in commits:
                stored[commit.command].append(commit.seq)
            expected = sum(self.given[commit.command][0] for commit in commits)
            loaded = await fresh.load(Counter, self.project, name)
            assert (loaded.aggregate.total if loaded.aggregate else 0) == expected
            assert (loaded.aggregate.notes if loaded.aggregate else []) == [commit.command for commit in commits]
        await fresh.close()
        for command, (seqs, _) in self.told.items():
            assert sorted(stored.pop(command)) == sorted(seqs), f"{command} was acknowledged at {seqs}"
        for command, seqs in stored.items():
            assert command in self.unknown
            assert len(seqs) == len(self.given[command][1]), f"{command} is stored by halves"
