"""Hypothesis strategies that follow from type annotations, pydantic's constraints included."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from domain.kernel.aggregate import ENVELOPE_FIELDS, Event
from domain.sandboxes.egress import EgressPolicy

WIDE = 2**53
"""Integers that every JSON reader keeps."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INSTANTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware by timezones
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-WIDE, WIDE) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
_LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bool: st.booleans(),
    int: st.integers(-WIDE, WIDE),
    float: st.floats(allow_nan=False, allow_infinity=False),
    datetime: INSTANTS,
    type(None): st.none(),
    Any: JSON,
    object: JSON,
}

EGRESS: list[dict[str, Any]] = [
    {},
    {"allow": ("10.0.0.0/8:443", "[fd00::1]:80-90")},
    {"allow": ("*.example.org",), "internet": False},
    {"allow": ("example.org:443",), "deny": ("*",)},
]
"""Egress policies that are allowed."""


def of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that ``hint`` allows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _LEAVES:
        return _LEAVES[hint]
    if origin is typing.Annotated:
        return constrained(args[0], list(args[1:]))
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([of(arg) for arg in args])
    if origin is tuple:
        return st.lists(of(args[0]), max_size=3).map(tuple)
    if origin in {dict, Mapping}:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return record(hint)
    raise TypeError(f"no strategy for {hint!r}")


def constrained(hint: Any, marks: list[Any]) -> st.SearchStrategy[Any]:
    """``hint`` within what its marks (``Field(ge=…)``, ``StringConstraints``) demand."""
    limits: dict[str, Any] = {}
    for mark in marks:
        for part in mark.metadata if isinstance(mark, FieldInfo) else [mark]:
            limits |= {
                name: getattr(part, name)
                for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
                if getattr(part, name, None) is not None
            }
            if isinstance(part, StringConstraints):
                limits |= {"pattern": part.pattern} if part.pattern else {}
    if hint is str and "pattern" in limits:
        return st.from_regex(limits["pattern"], fullmatch=True).filter(lambda s: "\n" not in s and len(s) <= limits.get("max_length", 99))
    if hint in {int, float}:
        low, high = limits.get("ge", limits.get("gt", -WIDE)), limits.get("le", limits.get("lt", WIDE))
        numbers = st.integers(low, high) if hint is int else st.floats(low, high, exclude_min="gt" in limits)
        return numbers.filter(lambda n: n != limits.get("gt"))
    if typing.get_origin(hint) is tuple and limits.get("min_length"):
        return st.lists(of(typing.get_args(hint)[0]), min_size=limits["min_length"], max_size=3).map(tuple)
    return of(hint)


@functools.cache
def record(cls: type[BaseModel], leave_out: frozenset[str] = frozenset()) -> st.SearchStrategy[Any]:
    """Instances of a record."""
    if issubclass(cls, EgressPolicy):  # its fields are a language of their own, and hang together
        return st.sampled_from(EGRESS).map(lambda fields: cls(**fields))
    return fields_of(cls, leave_out).map(lambda fields: cls(**fields))


@functools.cache  # made once: what a regular expression allows is dear to work out
def fields_of(cls: type[BaseModel], leave_out: frozenset[str] = frozenset()) -> st.SearchStrategy[dict[str, Any]]:
    """Its fields, required ones always and the others sometimes."""
    required, optional = {}, {}
    for name, info in cls.model_fields.items():
        if name not in leave_out:
            strategy = st.deferred(lambda i=info: constrained(i.annotation, i.metadata) if i.metadata else of(i.annotation))
            (required if info.is_required() else optional)[name] = strategy
    return st.fixed_dictionaries(required, optional=optional)


@functools.cache
def event(cls: type[Event]) -> st.SearchStrategy[Event]:
    """Events of that class, with an envelope."""
    envelope = {"originator_id": "x-1", "originator_version": 3}
    if "originator_topic" in cls.model_fields:
        envelope["originator_topic"] = "x"
    made = st.tuples(fields_of(cls, ENVELOPE_FIELDS), INSTANTS)
    return made.map(lambda drawn: cls(**envelope, timestamp=drawn[1], **drawn[0]))
