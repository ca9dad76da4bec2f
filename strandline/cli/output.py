"""Output: one answer, seven formats. Data goes to stdout and nothing else does."""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.text import Text

from strandline.cli.columns import Column, Row, Shape, cell_json, dig, exactly, plain
from strandline.cli.errors import UsageProblem
from strandline.cli.style import STATES, console, out
from strandline.cli.table import print_table
from strandline.client.items import Item


class Format(StrEnum):
    """What ``-o`` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    CSV = "csv"
    NAME = "name"


FORMATS = "How to answer: table, wide, json, jsonl, yaml, csv or name."
STREAMED = frozenset({Format.JSONL, Format.CSV, Format.NAME})
"""Formats whose rows are printed as they come; the others need all of them."""


class Output:
    """Where answers go, in the format that the caller chose."""

    def __init__(self, fmt: Format = Format.TABLE, columns: str | None = None, *, headers: bool = True) -> None:
        self.format = fmt
        self.names = [name.strip() for name in columns.split(",") if name.strip()] if columns else []
        self.headers = headers

    async def rows(self, items: AsyncIterable[Any], shape: Shape) -> int:
        """Print every item as it comes, or all at the end where the format needs them; how many there were."""
        if self.format not in STREAMED:
            found = [to_row(item) async for item in items]
            self.all(found, shape)
            return len(found)
        count = 0
        async for item in items:
            self._stream(to_row(item), shape, first=count == 0)
            count += 1
        if not count:
            self._stream(None, shape, first=True)
        return count

    def all(self, items: Iterable[Any], shape: Shape) -> None:
        """Print a list."""
        rows = [to_row(item) for item in items]
        match self.format:
            case Format.JSON:
                _json(self._picked(rows, shape))
            case Format.YAML:
                _yaml(self._picked(rows, shape))
            case Format.TABLE | Format.WIDE:
                if rows or self.headers:
                    print_table(sys.stdout, self.columns(shape, rows[:1]), rows, headers=self.headers)
            case _:
                for i, row in enumerate(rows or [None]):
                    self._stream(row, shape, first=i == 0)

    def one(self, item: Any, shape: Shape) -> None:
        """Print what a command or a ``get`` answered: an object for machines, one row for people."""
        row = to_row(item)
        match self.format:
            case Format.JSON:
                _json(self._picked([row], shape)[0])
            case Format.YAML:
                _yaml(self._picked([row], shape)[0])
            case _:
                self.all([row], shape)

    def record(self, item: Any, shape: Shape) -> None:
        """Print one thing with all its fields: one line per field for people, as ``one`` for machines."""
        row = to_row(item)
        if self.format not in {Format.TABLE, Format.WIDE} or self.names:
            self.one(row, shape)
            return
        shows = {c.path: c for c in shape.columns}
        width = max((len(name) for name in row), default=0)
        screen = console(sys.stdout)
        for name in row:
            column = shows.get(name, Column(name, name))
            text = exactly(column, row)
            screen.print(Text.assemble((f"{name}:".ljust(width + 2), "bold"), (text, STATES.get(text, "") if column.state else "")))

    def columns(self, shape: Shape, sample: Sequence[Row] = ()) -> list[Column]:
        """The columns to show. Raises ``UsageProblem`` for a name that neither the shape nor the sample has."""
        if self.names:
            chosen = shape.chosen(self.names)
            known = {c.path for c in shape.columns}
            for column in chosen:
                if column.path not in known and sample and dig(sample[0], column.path) is None and column.path not in sample[0]:
                    raise _no_such_column(column.path, [*known, *sample[0]])
            return chosen
        return list(shape.columns) if self.format in {Format.WIDE, Format.CSV} else shape.narrow()

    def _picked(self, rows: Sequence[Row], shape: Shape) -> Sequence[Row]:
        if not self.names:
            return rows
        return [{c.path: c.value(row) for c in self.columns(shape, rows[:1])} for row in rows]

    def _stream(self, row: Row | None, shape: Shape, *, first: bool) -> None:
        if self.format is Format.CSV:
            columns = self.columns(shape, () if row is None else [row])
            writer = csv.writer(sys.stdout, lineterminator="\n")
            if first and self.headers:
                writer.writerow([c.path for c in columns])
            if row is not None:
                writer.writerow([cell_json(c.value(row)) for c in columns])
        elif row is not None and self.format is Format.NAME:
            out(plain(dig(row, shape.key)))
        elif row is not None:
            out(json.dumps(self._picked([row], shape)[0], ensure_ascii=False, default=str))


def to_row(item: Any) -> Row:
    """The plain object behind an item or reply."""
    if isinstance(item, Item):
        return item.raw()
    if isinstance(item, Mapping):
        return item
    dumped: Row = item.model_dump(mode="json", exclude_none=True)
    return dumped


def _json(value: Any) -> None:
    out(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _yaml(value: Any) -> None:
    plain_value = json.loads(json.dumps(value, default=str))
    out(yaml.safe_dump(plain_value, sort_keys=False, allow_unicode=True).rstrip("\n"))


def _no_such_column(name: str, known: Sequence[str]) -> UsageProblem:
    near = difflib.get_close_matches(name, known, 1)
    unique = ", ".join(dict.fromkeys(known))
    return UsageProblem(
        f"no column {name!r}", f"did you mean {near[0]}?" if near else f"there are {unique}", columns=[*dict.fromkeys(known)]
    )
