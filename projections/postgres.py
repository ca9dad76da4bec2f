"""The view store in PostgreSQL: for several projectors' hosts, and for other tools that want to read views with SQL.

A view's items stand in ``"<view>@<number>"`` (kind, project, id, doc json), in the schema that the connection string's search path names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
import psycopg
from psycopg import sql

from projections.store import Changes, Generation, Item, Key, NoSuchView, Overtaken, Role, encode, field_name

_SCHEMA: Final = """
create table if not exists generations (
    view text not null, number bigint not null, schema integer not null, position bigint not null, role text not null,
    primary key (view, number)
);
create table if not exists numbers (view text primary key, last bigint not null);
create table if not exists log (one integer primary key check (one = 1), identity text not null);
"""
_LOCK: Final = 7_316_842
"""Advisory lock under which the tables above are made: two projectors may start at once."""

_MOVE: Final = (
    "update generations set position = u.position"
    " from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) as u (view, number, expected, position)"
    " where generations.view = u.view and generations.number = u.number and generations.position = u.expected"
)
_WRITE: Final = (
    "insert into {} select * from (select kind, project, id, doc::json from"
    " unnest(%s::text[], %s::text[], %s::text[], %s::text[]) as u (kind, project, id, doc)) as rows"
    " on conflict (kind, project, id) do update set doc = excluded.doc"
)
_DELETE: Final = (
    "delete from {} using unnest(%s::text[], %s::text[], %s::text[]) as u (kind, project, id)"
    " where {}.kind = u.kind and {}.project = u.project and {}.id = u.id"
)


def _table(view: str, number: int) -> sql.Identifier:
    return sql.Identifier(f"{view}@{number}")


def _value(name: str) -> sql.Composed:
    """A field's JSON text: compared as text, so that ``1``, ``"1"`` and ``true`` are three things."""
    return sql.SQL("((doc -> {})::text)").format(sql.Literal(field_name(name)))


class PostgresReader:
    """Reads of one generation over one connection."""

    def __init__(self, db: psycopg.Connection, view: str, number: int, position: int) -> None:
        self._db = db
        self._table = _table(view, number)
        self.number = number
        self.position = position

    def get(self, kind: str, project: str, id: str) -> Item | None:  # noqa: A002
        return self.get_many([(kind, project, id)]).get((kind, project, id))

    def get_many(self, keys: Sequence[Key]) -> dict[Key, Item]:
        query = sql.SQL(
            "select t.kind, t.project, t.id, t.doc::text from unnest(%s::text[], %s::text[], %s::text[]) as u (kind, project, id)"
            " join {} t using (kind, project, id)"
        ).format(self._table)
        rows = self._db.execute(query, _columns(keys))
        return {(kind, project, id_): orjson.loads(doc) for kind, project, id_, doc in rows}

    def scan(self, kind: str, project: str | None, where: Mapping[str, Any], after: str, limit: int) -> list[tuple[str, str, Item]]:
        conditions: list[sql.Composable] = [sql.SQL("kind = %s")]
        values: list[Any] = [kind]
        if project is not None:
            conditions += [sql.SQL("project = %s"), sql.SQL("id > %s")]
            values += [project, after]
        for name, value in where.items():
            conditions.append(sql.SQL("{} = %s").format(_value(name)))
            values.append(orjson.dumps(value).decode())
        query = sql.SQL("select project, id, doc::text from {} where {} order by kind, project, id limit %s").format(
            self._table, sql.SQL(" and ").join(conditions)
        )
        return [(p, i, orjson.loads(doc)) for p, i, doc in self._db.execute(query, (*values, limit))]

    def count(self, kind: str, project: str, field: str) -> dict[str, int]:
        query = sql.SQL("select {}, count(*) from {} where kind = %s and project = %s group by 1").format(_value(field), self._table)
        return {str(orjson.loads(v or "null") or ""): n for v, n in self._db.execute(query, (kind, project))}

    def dump(self) -> Iterator[tuple[Key, Item]]:
        query = sql.SQL("select kind, project, id, doc::text from {} order by kind, project, id").format(self._table)
        with self._db.cursor(name="dump") as cursor:
            for kind, project, id_, doc in cursor.execute(query):
                yield (kind, project, id_), orjson.loads(doc)


def _columns(keys: Iterable[Key]) -> tuple[list[str], list[str], list[str]]:
    keys = list(keys)
    return [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]


class PostgresStore:
    """One writing connection, and a few for readers; each is replaced when the server went away."""

    remote = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.Connection] = []
        self._db = self._connect()
        with self._db.transaction():
            self._db.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            self._db.execute(_SCHEMA)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._url, autocommit=True, connect_timeout=10, application_name="strandline-views")

    def _writer(self) -> psycopg.Connection:
        if self._db.closed:
            self._db = self._connect()
        return self._db

    @contextmanager
    def _writing(self) -> Iterator[psycopg.Connection]:
        """A transaction of the writer. Raises ``ConnectionError`` when the server is not there; the next one tries to connect again."""
        with _connection_errors():
            db = self._writer()
            with db.transaction():
                yield db

    def identity(self) -> str:
        with self._writing() as db:
            row = db.execute("select identity from log").fetchone()
        return "" if row is None else str(row[0])

    def adopt(self, identity: str) -> None:
        with self._writing() as db:
            db.execute("insert into log values (1, %s) on conflict (one) do update set identity = excluded.identity", (identity,))

    def generations(self) -> list[Generation]:
        with self._writing() as db:
            rows = db.execute("select view, number, schema, position, role from generations").fetchall()
        return sorted((Generation(v, n, s, p, Role(r)) for v, n, s, p, r in rows), key=lambda g: (g.view, g.number))

    def create(self, view: str, schema: int, role: Role = Role.BUILDING) -> Generation:
        with self._writing() as db:
            number = _one(
                db.execute(
                    "insert into numbers values (%s, 1) on conflict (view) do update set last = numbers.last + 1 returning last", (view,)
                )
            )[0]
            db.execute("insert into generations values (%s, %s, %s, 0, %s)", (view, number, schema, role))
            db.execute(
                sql.SQL(
                    'create table {} (kind text collate "C" not null, project text collate "C" not null,'
                    ' id text collate "C" not null, doc json not null, primary key (kind, project, id))'
                ).format(_table(view, number))
            )
        return Generation(view, number, schema, 0, role)

    def index(self, view: str, number: int, fields: Iterable[str]) -> None:
        statement = sql.SQL("create index if not exists {} on {} ({}, kind, project, id)")
        with self._writing() as db:
            for name in fields:
                index = sql.Identifier(f"{view}@{number}.{name}")
                db.execute(statement.format(index, _table(view, number), _value(name)))

    def write(self, changes: Sequence[Changes]) -> None:
        with self._writing() as db:
            moves = [(c.view, c.number, c.expected, c.position) for c in changes]
            moved = db.execute(_MOVE, [list(column) for column in zip(*moves, strict=True)])
            if moved.rowcount != len(changes):
                raise Overtaken(f"not all of these are where they were expected: {moves}")
            with db.pipeline():
                for change in changes:
                    self._write(db, change)

    @staticmethod
    def _write(db: psycopg.Connection, change: Changes) -> None:
        table = _table(change.view, change.number)
        kept = {key: encode(item) for key, item in change.rows.items() if item is not None}
        if kept:
            db.execute(sql.SQL(_WRITE).format(table), (*_columns(kept), list(kept.values())))
        gone = [key for key, item in change.rows.items() if item is None]
        if gone:
            db.execute(sql.SQL(_DELETE).format(table, table, table, table), _columns(gone))

    def switch(self, view: str, number: int) -> list[Generation]:
        with self._writing() as db:
            former = [g for g in self.generations() if g.view == view and g.role is Role.LIVE and g.number != number]
            db.execute("update generations set role = %s where view = %s and role = %s", (Role.RETIRED, view, Role.LIVE))
            made = db.execute("update generations set role = %s where view = %s and number = %s", (Role.LIVE, view, number))
            if made.rowcount != 1:
                raise NoSuchView(f"{view}@{number}")
        return former

    def drop(self, view: str, number: int) -> None:
        with self._writing() as db:
            db.execute("delete from generations where view = %s and number = %s", (view, number))
            db.execute(sql.SQL("drop table if exists {}").format(_table(view, number)))

    @contextmanager
    def read(self, view: str, number: int | None = None) -> Iterator[PostgresReader]:
        with _connection_errors():
            db = self._idle.pop() if self._idle else self._connect()
            try:
                with db.transaction():
                    db.execute("set transaction isolation level repeatable read, read only")
                    yield self._reader(db, view, number)
            except psycopg.errors.UndefinedTable as error:
                raise NoSuchView(f"{view} was replaced while it was read") from error
            finally:
                if db.closed:
                    self._forget_idle()
                else:
                    self._idle.append(db)

    def _forget_idle(self) -> None:
        """When one connection broke, the others are as old."""
        while self._idle:
            self._idle.pop().close()

    def current(self, view: str, number: int) -> PostgresReader:
        return self._reader(self._writer(), view, number)

    @staticmethod
    def _reader(db: psycopg.Connection, view: str, number: int | None) -> PostgresReader:
        wanted = "select number, position from generations where view = %s and role = %s"
        if number is not None:
            wanted = "select number, position from generations where view = %s and number = %s"
        row = db.execute(wanted, (view, Role.LIVE if number is None else number)).fetchone()
        if row is None:
            raise NoSuchView(view if number is None else f"{view}@{number}")
        return PostgresReader(db, view, row[0], row[1])

    def close(self) -> None:
        self._forget_idle()
        self._db.close()


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Errors of a lost or refused connection, as the built-in they are."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise ConnectionError(str(error)) from error


def _one(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    if row is None:
        raise LookupError("the statement returned nothing")
    return tuple(row)
