"""The view store in memory: for tests, and for views as of a moment that are thrown away after use."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from projections.store import Changes, Generation, Item, Key, NoSuchView, Overtaken, Role, encode, field_name


@dataclass
class _Table:
    """One generation's items, as encoded text: what a caller changes in an item it was given does not change the store."""

    generation: Generation
    rows: dict[Key, str] = field(default_factory=dict)
    keys: list[Key] | None = None

    def ordered(self) -> list[Key]:
        if self.keys is None:
            self.keys = sorted(self.rows)
        return self.keys


class MemoryReader:
    """Reads of one table; a snapshot as long as nobody writes, which within one thread is until the next await."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        self.position = table.generation.position
        self.number = table.generation.number

    def get(self, kind: str, project: str, id: str) -> Item | None:  # noqa: A002
        found = self._table.rows.get((kind, project, id))
        return None if found is None else orjson.loads(found)

    def get_many(self, keys: Sequence[Key]) -> dict[Key, Item]:
        rows = self._table.rows
        return {key: orjson.loads(rows[key]) for key in keys if key in rows}

    def scan(self, kind: str, project: str | None, where: Mapping[str, Any], after: str, limit: int) -> list[tuple[str, str, Item]]:
        wanted = {name: orjson.dumps(value) for name, value in where.items()}
        found: list[tuple[str, str, Item]] = []
        for key in self._from(kind, project, after):
            if len(found) >= limit or key[0] != kind or (project is not None and key[1] != project):
                break
            item = orjson.loads(self._table.rows[key])
            if all(name in item and orjson.dumps(item[name]) == value for name, value in wanted.items()):
                found.append((key[1], key[2], item))
        return found

    def _from(self, kind: str, project: str | None, after: str) -> Iterator[Key]:
        keys = self._table.ordered()
        start = bisect_right(keys, (kind, project or "", after))
        return (keys[i] for i in range(start, len(keys)))

    def count(self, kind: str, project: str, field: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for row_kind, row_project, id_ in self._from(kind, project, ""):
            if (row_kind, row_project) != (kind, project):
                break
            value = orjson.loads(self._table.rows[row_kind, row_project, id_]).get(field)
            counts["" if value is None else str(value)] += 1
        return dict(counts)

    def dump(self) -> Iterator[tuple[Key, Item]]:
        for key in self._table.ordered():
            yield key, orjson.loads(self._table.rows[key])


class MemoryStore:
    """Everything in dictionaries."""

    remote = False

    def __init__(self) -> None:
        self._tables: dict[tuple[str, int], _Table] = {}
        self._last: Counter[str] = Counter()
        self._identity = ""

    def __len__(self) -> int:
        """How many items it holds altogether."""
        return sum(len(table.rows) for table in self._tables.values())

    def identity(self) -> str:
        return self._identity

    def adopt(self, identity: str) -> None:
        self._identity = identity

    def generations(self) -> list[Generation]:
        return [self._tables[key].generation for key in sorted(self._tables)]

    def create(self, view: str, schema: int, role: Role = Role.BUILDING) -> Generation:
        self._last[view] += 1
        made = Generation(view, self._last[view], schema, 0, role)
        self._tables[view, made.number] = _Table(made)
        return made

    def index(self, view: str, number: int, fields: Iterable[str]) -> None:
        """Every scan walks all items of a project anyway; only the names are checked."""
        self._find(view, number)
        for name in fields:
            field_name(name)

    def write(self, changes: Sequence[Changes]) -> None:
        tables = []
        for change in changes:
            table = self._tables.get((change.view, change.number))
            if table is None or table.generation.position != change.expected:
                raise Overtaken(f"{change.view}@{change.number} is not at {change.expected}")
            tables.append((table, change, {k: None if item is None else encode(item) for k, item in change.rows.items()}))
        for table, change, rows in tables:
            for key, text in rows.items():
                if text is None:
                    if table.rows.pop(key, None) is not None:
                        table.keys = None
                else:
                    if key not in table.rows:
                        table.keys = None
                    table.rows[key] = text
            table.generation = replace(table.generation, position=change.position)

    def switch(self, view: str, number: int) -> list[Generation]:
        table = self._tables.get((view, number))
        if table is None:
            raise NoSuchView(f"{view}@{number}")
        former = [t for t in self._tables.values() if t.generation.view == view and t.generation.role is Role.LIVE and t is not table]
        before = [old.generation for old in former]
        for old in former:
            old.generation = replace(old.generation, role=Role.RETIRED)
        table.generation = replace(table.generation, role=Role.LIVE)
        return before

    def drop(self, view: str, number: int) -> None:
        self._tables.pop((view, number), None)

    @contextmanager
    def read(self, view: str, number: int | None = None) -> Iterator[MemoryReader]:
        yield MemoryReader(self._find(view, number))

    def current(self, view: str, number: int) -> MemoryReader:
        return MemoryReader(self._find(view, number))

    def _find(self, view: str, number: int | None) -> _Table:
        for table in self._tables.values():
            g = table.generation
            if g.view == view and (g.role is Role.LIVE if number is None else g.number == number):
                return table
        raise NoSuchView(view if number is None else f"{view}@{number}")

    def close(self) -> None:
        """Nothing is open."""
