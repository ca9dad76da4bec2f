"""How every aggregate is brought into every state: a world per aggregate, a row per row of its tables (``worlds.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.gwt import Step, given

from domain.kernel.aggregate import Aggregate

Path = tuple[Step, ...]


@dataclass(frozen=True)
class Row:
    """A row's call. ``before``: what must have happened in a state first; ``path``: another way there; ``again``: repeats are news."""

    step: Step | Callable[[Any], Step]
    before: Mapping[str, Path] = field(default_factory=dict)
    path: Mapping[str, Path] = field(default_factory=dict)
    again: bool = False


@dataclass(frozen=True)
class World:
    """``states``: attribute -> state -> how to get there from ``create``."""

    create: Callable[[], Aggregate]
    states: Mapping[str, Mapping[str, Path]]
    rows: Mapping[str, Row]

    def reach(self, attribute: str, state: str, row: str) -> Any:
        """The aggregate in that state, ready for that row's call."""
        return given(self.create, *self.way(attribute, state, row)).aggregate

    def way(self, attribute: str, state: str, row: str) -> Path:
        """How it got there."""
        known = self.rows[row]
        return (*known.path.get(state, self.states[attribute][state]), *known.before.get(state, ()))

    def step(self, row: str, aggregate: Any) -> Step:
        step = self.rows[row].step
        return step if isinstance(step, Step) else step(aggregate)
