"""The view-store port: where views keep their items, and how far into the log each of them has read.

An item is a JSON object under (kind, project, id). Kind ``""`` holds what queries return; other kinds are a view's own working notes. Every
view lives in a **generation**: a numbered table of its own with a position. Items and positions change in one transaction, so a store is
always exactly the view of some prefix of the log, whatever was killed when (design.md §8). Positions are expected as well as set: when two
projectors write the same store by mistake, one of them gets ``Overtaken`` instead of both corrupting it.

Adapters: :mod:`projections.memory`, :mod:`projections.sqlite`, :mod:`projections.postgres`; one contract suite runs against all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias

import orjson

from domain.kernel.command import canonical

Item: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]
"""(kind, project, id)."""

ITEMS: Final = ""
"""The kind of items that queries return."""

_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Overtaken(Exception):  # noqa: N818 - it names what happened, as in "stale read"
    """Another writer moved a generation's position; nothing was written. Whoever sees it reads positions anew."""


class NoSuchView(LookupError):  # noqa: N818 - it names what happened
    """The store has no live generation of this view (yet)."""


class Role(StrEnum):
    """``LIVE``: answers queries, one per view. ``BUILDING``: being replayed beside it. ``RETIRED``: was live, and is about to be dropped.

    ``COPY``: a view as of some earlier position.
    """

    LIVE = "live"
    BUILDING = "building"
    RETIRED = "retired"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Generation:
    """One build of one view. ``schema`` is the version of the view's code that made it; another one means: rebuild."""

    view: str
    number: int
    schema: int
    position: int
    role: Role

    @property
    def name(self) -> str:
        """What its items are kept under."""
        return f"{self.view}@{self.number}"


@dataclass(slots=True)
class Changes:
    """What one batch does to one generation. ``rows`` maps a key to its new item, or to None when the item goes."""

    view: str
    number: int
    expected: int
    position: int
    rows: Mapping[Key, Item | None]


class Reader(Protocol):
    """Reads of one generation. From :meth:`Store.read`: one consistent snapshot, position included."""

    position: int
    number: int

    def get(self, kind: str, project: str, id: str) -> Item | None: ...  # noqa: A002

    def get_many(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """The items that exist among ``keys``."""
        ...

    def scan(self, kind: str, project: str | None, where: Mapping[str, Any], after: str, limit: int) -> list[tuple[str, str, Item]]:
        """At most ``limit`` (project, id, item) with id > ``after``, ascending; ``project`` None means all (then ``after`` must be "").

        ``where`` compares fields for equality of their JSON values.
        """
        ...

    def count(self, kind: str, project: str, field: str) -> dict[str, int]:
        """How many items have each value of ``field``, keyed by the value's text (null: the empty string)."""
        ...

    def dump(self) -> Iterator[tuple[Key, Item]]:
        """Everything, ascending by key."""
        ...


class Store(Protocol):
    """Where generations live. Methods block; one writer at a time, any number of readers in any thread."""

    remote: bool
    """Whether a read costs a round trip, so that callers should ask for many items at once and stay off the event loop."""

    def identity(self) -> str:
        """Which log the generations were made from; empty until ``adopt`` says so."""
        ...

    def adopt(self, identity: str) -> None:
        """Remember which log this is."""
        ...

    def generations(self) -> list[Generation]:
        """Everything that exists, by view and number."""
        ...

    def create(self, view: str, schema: int, role: Role = Role.BUILDING) -> Generation:
        """An empty generation at position 0. Numbers grow and are never used again."""
        ...

    def index(self, view: str, number: int, fields: Iterable[str]) -> None:
        """See to it that filters on ``fields`` are fast. Left until a generation is full: indexes make filling it slow."""
        ...

    def write(self, changes: Sequence[Changes]) -> None:
        """Apply all, with their positions, in one transaction. Raises ``Overtaken`` when a position is not the expected one."""
        ...

    def switch(self, view: str, number: int) -> list[Generation]:
        """Make this generation the live one, atomically. The former live ones are returned as they were; they retire."""
        ...

    def drop(self, view: str, number: int) -> None:
        """Forget a generation. Dropping what is not there is no error."""
        ...

    def read(self, view: str, number: int | None = None) -> AbstractContextManager[Reader]:
        """A snapshot of the live generation, or of that one. Raises ``NoSuchView``."""
        ...

    def current(self, view: str, number: int) -> Reader:
        """Reads as the writer sees them, for views that look at their own items while they apply events."""
        ...

    def close(self) -> None: ...


def field_name(name: str) -> str:
    """``name``, if it may stand in a statement. Fields come from view definitions, so anything else is a bug: ``ValueError``."""
    if not _FIELD.fullmatch(name):
        raise ValueError(f"not a field name: {name!r}")
    return name


def encode(item: Item) -> str:
    """An item as stored. NUL characters, which PostgreSQL does not take, become U+FFFD in every store, so that stores stay comparable."""
    data = orjson.dumps(item)
    if rb"\u0000" in data:
        data = canonical(_without_nul(orjson.loads(data)))
    return data.decode()


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "\ufffd")
        case dict():
            return {_without_nul(k): _without_nul(v) for k, v in value.items()}
        case list():
            return [_without_nul(v) for v in value]
        case _:
            return value
