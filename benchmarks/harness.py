"""What every benchmark is made of: measures taken in turn, medians, and rows that know their budget."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Measure = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Budget:
    """``least``: the value must reach ``limit``; otherwise it must not exceed it."""

    limit: float
    unit: str = "×"
    least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.limit:g} {self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``value`` is what the budget is about: a ratio, a difference or a size; None where there is only a figure."""

    what: str
    ours: str
    bare: str = ""
    value: float | None = None
    unit: str = "×"
    budget: Budget | None = None

    @property
    def verdict(self) -> str:
        if self.budget is None or self.value is None:
            return ""
        return "met" if self.budget.met(self.value) else "MISSED"

    def cells(self) -> list[str]:
        value = "" if self.value is None else f"{self.value:.3g} {self.unit}".strip()
        return [self.what, self.ours, self.bare, value, "" if self.budget is None else str(self.budget), self.verdict]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        budget = data.pop("budget")
        return cls(**data, budget=budget and Budget(**budget))


async def in_turn(times: int, measures: Mapping[str, Measure]) -> dict[str, list[float]]:
    """Every measure once, ``times`` over, every other time backwards: what the machine does meanwhile hits all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(times):
        names = list(measures)
        for name in reversed(names) if turn % 2 else names:
            found[name].append(await measures[name]())
    return found


def ratio(ours: Sequence[float], bare: Sequence[float]) -> float:
    """The median of the ratios within one turn."""
    return statistics.median(a / b for a, b in zip(ours, bare, strict=True))


def difference(ours: Sequence[float], bare: Sequence[float]) -> float:
    """The median of the differences within one turn."""
    return statistics.median(a - b for a, b in zip(ours, bare, strict=True))


def per_second(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f}/s"


def millis(values: Sequence[float]) -> str:
    """Seconds, shown as milliseconds."""
    return f"{statistics.median(values) * 1000:.2f} ms"


async def at_once(calls: int, width: int, one: Callable[[int], Awaitable[object]]) -> None:
    """``calls`` calls of ``one(number)``, ``width`` of them under way at any time."""
    numbers: Iterator[int] = iter(range(calls))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(width)))


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows as a table, for a terminal or for a document."""
    head = ["what", "ours", "bare", "value", "budget", ""]
    lines = [head, *(row.cells() for row in rows)]
    if markdown:
        rule = "|" + "---|" * len(head)
        told = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([told[0], rule, *told[1:]])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
