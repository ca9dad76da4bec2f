"""Lifecycle tables: one text table per aggregate says every legal transition and every refusal.

The table is the rule, not a picture of it: aggregates ask it before they record anything, and the tests walk every cell.
Columns are states, rows are commands. A cell is

* a state: the command is accepted and leads there (the column's own name: accepted, the state stays);
* ``=``: already so. Nothing is recorded and nobody is told off (a repeat is not news);
* ``!``: refused with ``<noun>.illegal-state`` (details: ``state``, ``allowed``);
* ``!code``: refused with that code instead, e.g. ``!template.in-use``.

A command that leads to different states has one row per outcome, ``command:outcome``; the aggregate says which outcome it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Generic, TypeVar

from domain.kernel.errors import Refused

S = TypeVar("S", bound=StrEnum)

SAME = "="
REFUSED = "!"


class Lifecycle(Generic[S]):
    """A parsed lifecycle table. Raises ``ValueError`` at import when the table is not complete."""

    def __init__(self, noun: str, states: type[S], table: str) -> None:
        lines = [line.split() for line in table.strip().splitlines() if line.strip()]
        columns = [states(name) for name in lines[0]]
        if set(columns) != set(states):
            raise ValueError(f"{noun}: the table's columns are not its states")
        self.noun = noun
        self.states = states
        self.table: dict[str, dict[S, str]] = {}
        for command, *cells in lines[1:]:
            if len(cells) != len(columns):
                raise ValueError(f"{noun}.{command}: {len(cells)} cells for {len(columns)} states")
            self.table[command] = dict(zip(columns, cells, strict=True))
            for cell in cells:
                if cell != SAME and not cell.startswith(REFUSED):
                    states(cell)

    def __iter__(self) -> Iterator[tuple[str, S, str]]:
        """Every (command, state, cell)."""
        for command, row in self.table.items():
            for state, cell in row.items():
                yield command, state, cell

    def admits(self, command: str, state: S) -> bool:
        """True: go on and record. False: already so. Raises ``Refused`` where the table refuses."""
        cell = self.table[command][state]
        if cell.startswith(REFUSED):
            raise self._refusal(command, state, cell)
        return cell != SAME

    def target(self, command: str, state: S) -> S:
        """The state the table leads to; only for cells that are accepted."""
        return self.states(self.table[command][state])

    def _refusal(self, command: str, state: S, cell: str) -> Refused:
        allowed = [s.value for s, c in self.table[command].items() if not c.startswith(REFUSED)]
        asked = command.partition(":")[0].removeprefix("request_").removeprefix("require_").replace("_", " ")
        return Refused(
            cell[1:] or f"{self.noun}.illegal-state",
            f"{self.noun} is {state.value}; {asked} needs {' or '.join(allowed) or 'another life'}",
            details={"state": state.value, "allowed": allowed},
        )

    def to_markdown(self) -> str:
        """The table as a Markdown table: rows are commands, columns are states."""
        rows = [["", *(state.value for state in self.states)]]
        rows += [[f"`{command}`", *(f"`{row[state]}`" for state in self.states)] for command, row in self.table.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines) + "\n"
