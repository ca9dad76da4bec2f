"""Facts: the events of the log as views read them, as plain JSON data, brought up to the schema that this version knows.

Views do not decode events into classes: that would cost more than everything else they do. What a class would add is added here once per
event: old schemas are upcast, and fields that stand in the log only when they differ from their default are filled in, at every depth.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec
from pydantic import BaseModel

from domain.kernel.aggregate import ENVELOPE_FIELDS
from domain.kernel.registry import EVENTS

Json: TypeAlias = dict[str, Any]
Fill: TypeAlias = Callable[[Any], Any]


class Fact(msgspec.Struct, gc=False):
    """One event. ``time`` is RFC 3339 in UTC; ``data`` has every field of the event's class."""

    seq: int
    time: str
    project: str
    id: str
    type: str
    data: Json


class RawEvent(msgspec.Struct, frozen=True, gc=False):
    """An event in a stored commit; ``data`` is not parsed before a view wants it."""

    type: str
    schema: int
    version: int
    data: msgspec.Raw


class RawCommit(msgspec.Struct, frozen=True, gc=False):
    """What views read of a stored commit. Most of its bytes are not theirs: this takes half the time of parsing it whole."""

    project: str
    id: str
    time: str
    events: list[RawEvent]


read_commit: Final = msgspec.json.Decoder(RawCommit).decode
"""The commit in stored bytes. Raises ``msgspec.MsgspecError`` when there is none."""


_parse: Final = msgspec.json.Decoder().decode


class UnreadableEvent(Exception):  # noqa: N818 - it names what it is
    """An event of a schema that this version does not know: it was written by a newer one."""


def read_fact(seq: int, commit: RawCommit, event: RawEvent) -> Fact:
    """One event of a commit. Raises ``UnreadableEvent``."""
    name = event.type
    data = _parse(event.data)
    schema, fill = _READ.get(name) or _learn(name)
    if event.schema != schema:
        data = _upcast(name, event.schema, data)
    return Fact(seq, commit.time, commit.project, commit.id, name, fill(data))


_READ: Final[dict[str, tuple[int, Callable[[Json], Json]]]] = {}
"""By event type: the schema that this version writes, and what completes its data."""


def _learn(name: str) -> tuple[int, Callable[[Json], Json]]:
    cls = EVENTS.get(name)
    if cls is None:
        raise UnreadableEvent(f"{name} is not an event of this version")
    _READ[name] = cls.class_version, filler(cls, leave_out=ENVELOPE_FIELDS | {"originator_topic"})
    return _READ[name]


def _upcast(name: str, schema: int, data: Json) -> Json:
    """``data`` in the newest schema."""
    cls = EVENTS[name]
    if schema > cls.class_version:
        raise UnreadableEvent(f"{name} has schema {schema}; this version knows up to {cls.class_version}")
    for old in range(schema, cls.class_version):
        getattr(cls, f"upcast_v{old}_v{old + 1}")(data)
    return data


def filler(cls: type[BaseModel], *, leave_out: frozenset[str] = frozenset()) -> Callable[[Json], Json]:
    """A function that completes the JSON form of a ``cls``: what ``exclude_defaults`` left out comes back, in nested records too."""
    hints = get_type_hints(cls, include_extras=True)
    names = [name for name in cls.model_fields if name not in leave_out]
    defaults = _defaults(cls, names)
    nested = tuple((name, fill) for name in names if (fill := _filler_of(hints[name])) is not None)

    def complete(data: Json) -> Json:
        full = defaults | data
        for name, fill in nested:
            if name in data:
                full[name] = fill(data[name])
        return full

    if nested:
        return complete
    return (lambda data: defaults | data) if defaults else _unchanged


def _unchanged(data: Json) -> Json:
    return data


def _defaults(cls: type[BaseModel], names: list[str]) -> Json:
    """Every optional field's default as JSON. Shared between items: views replace values, they do not change them in place."""
    values = {}
    for name in names:
        field = cls.model_fields[name]
        if not field.is_required():
            values[name] = field.get_default(call_default_factory=True, validated_data={})
    return cls.model_construct(**values).model_dump(mode="json", include=set(values), warnings=False)


_MAPPINGS: Final = (dict,)
_SEQUENCES: Final = (tuple, list, frozenset, set)


def _filler_of(hint: Any) -> Fill | None:
    """How values of a type are completed; None: there is nothing to complete."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and origin is None:
        fill = filler(hint) if issubclass(hint, BaseModel) else _unchanged
        return None if fill is _unchanged else fill
    if origin is Annotated:
        return _filler_of(arguments[0])
    if origin in (Union, UnionType):
        return _optional(arguments)
    if origin in _MAPPINGS and (inner := _filler_of(arguments[1])) is not None:
        return _each_value(inner)
    if origin in _SEQUENCES and (inner := _filler_of(arguments[0])) is not None:
        return _each(inner)
    return None


def _each_value(fill: Fill) -> Fill:
    return lambda value: {name: fill(v) for name, v in value.items()}


def _each(fill: Fill) -> Fill:
    return lambda value: [fill(v) for v in value]


def _optional(arguments: tuple[Any, ...]) -> Fill | None:
    """``X | None``. A union of several records would need a discriminator; events have none, and one that comes is found by a test."""
    fillers = [fill for fill in (_filler_of(a) for a in arguments if a is not type(None)) if fill is not None]
    if not fillers:
        return None
    if len(fillers) > 1:
        raise TypeError(f"a union of several records cannot be completed: {arguments}")
    fill = fillers[0]
    return lambda value: None if value is None else fill(value)
