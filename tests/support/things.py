"""A tiny aggregate, so that the bus is tested without the product's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import ClassVar

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.command import Cause
from domain.kernel.errors import Refused

START = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = "default"


class Counter(Aggregate):
    """Counts what was added to it, and refuses to go over a limit."""

    TOPIC: ClassVar[str] = "counter"
    total: int
    limit: int
    notes: list[str]

    @classmethod
    def open(cls, at: datetime, counter_id: str, limit: int = 1_000_000) -> Counter:
        return cls.begin(Opened, counter_id, at, limit=limit)

    def add(self, at: datetime, amount: int, note: str = "") -> None:
        if self.total + amount > self.limit:
            raise Refused("counter.full", f"{self.total} + {amount} is over {self.limit}")
        if amount:
            self.record(Added, at, amount=amount, note=note)


class Opened(CreatedEvent):
    TOPIC: ClassVar[str] = "counter.opened"
    limit: int

    def apply(self, aggregate: Counter) -> None:
        aggregate.total = 0
        aggregate.limit = self.limit
        aggregate.notes = []


class Added(Event):
    TOPIC: ClassVar[str] = "counter.added"
    amount: int
    note: str = ""

    def apply(self, aggregate: Counter) -> None:
        aggregate.total += self.amount
        if self.note:
            aggregate.notes.append(self.note)


def cause(command: str, digest: str = "d", tick: int = 0, project: str = PROJECT) -> Cause:
    """Command ``command``, given ``tick`` seconds after the start of the test's time."""
    return Cause(command, digest, "tester", project, START + timedelta(seconds=tick))


def adding(amount: int, counter_id: str, note: str = "", limit: int = 1_000_000):
    """A decision: open the counter when it does not exist, and add."""

    def decide(counter: Counter | None) -> Counter:
        counter = counter or Counter.open(START, counter_id, limit)
        counter.add(START, amount, note)
        return counter

    return decide
