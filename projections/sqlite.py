"""The view store in one SQLite file: write-ahead log, one writing connection, and a few for readers, who never wait for it.

``synchronous=NORMAL``: after a power cut the file may be some transactions behind, never torn; the log replays the difference.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from projections.store import Changes, Generation, Item, Key, NoSuchView, Overtaken, Role, encode, field_name

_SCHEMA: Final = """
create table if not exists generations (
    view text not null, number integer not null, schema integer not null, position integer not null, role text not null,
    primary key (view, number)
);
create table if not exists numbers (view text primary key, last integer not null);
create table if not exists log (one integer primary key check (one = 1), identity text not null);
"""
PAGE_BYTES: Final = 16_384
"""SQLite's pages in a new file. Items are half a KiB: with the usual 4 KiB, writing a replay's rows costs twice as much."""
ROWS: Final = 500
"""Rows per statement: a writing thread gives the interpreter up for each statement, and has to wait for it again when the loop is busy."""
WAL_PAGES: Final = 4_096
"""Pages (64 MiB) after which the write-ahead log goes into the file: a replay writes the same pages again and again."""
CACHE_KB: Final = 32_768
"""SQLite's page cache per connection, in KiB."""


def _table(view: str, number: int) -> str:
    return f'"{view}@{number}"'


class SqliteReader:
    """Reads of one generation over one connection."""

    def __init__(self, db: sqlite3.Connection, view: str, number: int, position: int) -> None:
        self._db = db
        self._table = _table(view, number)
        self.number = number
        self.position = position

    def get(self, kind: str, project: str, id: str) -> Item | None:  # noqa: A002
        sql = f"select doc from {self._table} where kind = ? and project = ? and id = ?"  # noqa: S608 - the table is ours
        row = self._db.execute(sql, (kind, project, id)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def get_many(self, keys: Sequence[Key]) -> dict[Key, Item]:
        found: dict[Key, Item] = {}
        for first in range(0, len(keys), ROWS):
            part = keys[first : first + ROWS]
            places = ", ".join(["(?, ?, ?)"] * len(part))
            sql = f"select kind, project, id, doc from {self._table} where (kind, project, id) in (values {places})"  # noqa: S608 - ours
            rows = self._db.execute(sql, [value for key in part for value in key])
            found.update(((kind, project, id_), orjson.loads(doc)) for kind, project, id_, doc in rows)
        return found

    def scan(self, kind: str, project: str | None, where: Mapping[str, Any], after: str, limit: int) -> list[tuple[str, str, Item]]:
        conditions, values = ["kind = ?"], [kind]
        if project is not None:
            conditions += ["project = ?", "id > ?"]
            values += [project, after]
        for name, value in where.items():
            conditions.append(f"doc -> '$.{field_name(name)}' = ?")
            values.append(orjson.dumps(value).decode())
        sql = (
            f"select project, id, doc from {self._table} where {' and '.join(conditions)}"  # noqa: S608 - names are checked
            " order by kind, project, id limit ?"
        )
        return [(p, i, orjson.loads(doc)) for p, i, doc in self._db.execute(sql, (*values, limit))]

    def count(self, kind: str, project: str, field: str) -> dict[str, int]:
        sql = (
            f"select doc -> '$.{field_name(field)}', count(*) from {self._table}"  # noqa: S608 - the name is checked
            " where kind = ? and project = ? group by 1"
        )
        return {str(orjson.loads(v or "null") or ""): n for v, n in self._db.execute(sql, (kind, project))}

    def dump(self) -> Iterator[tuple[Key, Item]]:
        sql = f"select kind, project, id, doc from {self._table} order by kind, project, id"  # noqa: S608 - the table is ours
        for kind, project, id_, doc in self._db.execute(sql):
            yield (kind, project, id_), orjson.loads(doc)


class SqliteStore:
    """Generations as tables ``"<view>@<number>"`` of (kind, project, id, doc)."""

    remote = False

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._db = self._connect()
        self._db.execute("pragma journal_mode = wal")
        self._db.executescript(_SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        db.execute(f"pragma page_size = {PAGE_BYTES}")
        db.execute("pragma synchronous = normal")
        db.execute(f"pragma wal_autocheckpoint = {WAL_PAGES}")
        db.execute(f"pragma cache_size = -{CACHE_KB}")
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("begin immediate")
        try:
            yield self._db
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise

    def identity(self) -> str:
        row = self._db.execute("select identity from log").fetchone()
        return "" if row is None else str(row[0])

    def adopt(self, identity: str) -> None:
        self._db.execute("insert into log values (1, ?) on conflict do update set identity = excluded.identity", (identity,))

    def generations(self) -> list[Generation]:
        rows = self._db.execute("select view, number, schema, position, role from generations order by view, number")
        return [Generation(v, n, s, p, Role(r)) for v, n, s, p, r in rows]

    def create(self, view: str, schema: int, role: Role = Role.BUILDING) -> Generation:
        with self._transaction() as db:
            sql = "insert into numbers values (?, 1) on conflict (view) do update set last = last + 1 returning last"
            number = int(db.execute(sql, (view,)).fetchone()[0])
            db.execute("insert into generations values (?, ?, ?, 0, ?)", (view, number, schema, role))
            db.execute(
                f"create table {_table(view, number)}"
                " (kind text not null, project text not null, id text not null, doc text not null, primary key (kind, project, id))"
            )
        return Generation(view, number, schema, 0, role)

    def index(self, view: str, number: int, fields: Iterable[str]) -> None:
        for name in fields:
            self._db.execute(
                f'create index if not exists "{view}@{number}.{field_name(name)}"'
                f" on {_table(view, number)} (doc -> '$.{name}', kind, project, id)"
            )

    def write(self, changes: Sequence[Changes]) -> None:
        with self._transaction() as db:
            for change in changes:
                self._write(db, change)

    @staticmethod
    def _write(db: sqlite3.Connection, change: Changes) -> None:
        moved = db.execute(
            "update generations set position = ? where view = ? and number = ? and position = ?",
            (change.position, change.view, change.number, change.expected),
        )
        if moved.rowcount != 1:
            raise Overtaken(f"{change.view}@{change.number} is not at {change.expected}")
        if not change.rows:
            return
        table = _table(change.view, change.number)
        values: list[str] = []
        for key, item in change.rows.items():
            if item is not None:
                values += (*key, encode(item))
        for first in range(0, len(values), 4 * ROWS):
            part = values[first : first + 4 * ROWS]
            places = ", ".join(["(?, ?, ?, ?)"] * (len(part) // 4))
            sql = f"insert into {table} values {places} on conflict do update set doc = excluded.doc"  # noqa: S608 - the table is ours
            db.execute(sql, part)
        db.executemany(
            f"delete from {table} where kind = ? and project = ? and id = ?",  # noqa: S608 - the table is ours
            (key for key, item in change.rows.items() if item is None),
        )

    def switch(self, view: str, number: int) -> list[Generation]:
        former = [g for g in self.generations() if g.view == view and g.role is Role.LIVE and g.number != number]
        with self._transaction() as db:
            db.execute("update generations set role = ? where view = ? and role = ?", (Role.RETIRED, view, Role.LIVE))
            made = db.execute("update generations set role = ? where view = ? and number = ?", (Role.LIVE, view, number))
            if made.rowcount != 1:
                raise NoSuchView(f"{view}@{number}")
        return former

    def drop(self, view: str, number: int) -> None:
        with self._transaction() as db:
            db.execute("delete from generations where view = ? and number = ?", (view, number))
            db.execute(f"drop table if exists {_table(view, number)}")

    @contextmanager
    def read(self, view: str, number: int | None = None) -> Iterator[SqliteReader]:
        db = self._idle.pop() if self._idle else self._connect()
        try:
            db.execute("begin")
            yield self._reader(db, view, number)
        finally:
            db.execute("rollback")
            self._idle.append(db)

    def current(self, view: str, number: int) -> SqliteReader:
        return self._reader(self._db, view, number)

    @staticmethod
    def _reader(db: sqlite3.Connection, view: str, number: int | None) -> SqliteReader:
        condition, value = ("role = ?", Role.LIVE) if number is None else ("number = ?", number)
        sql = f"select number, position from generations where view = ? and {condition}"  # noqa: S608 - one of two literals
        row = db.execute(sql, (view, value)).fetchone()
        if row is None:
            raise NoSuchView(view if number is None else f"{view}@{number}")
        return SqliteReader(db, view, row[0], row[1])

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        self._db.close()
