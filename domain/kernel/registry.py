"""Wire names: which class stands behind ``sandbox``, ``sandbox.started``, ``sandbox.create``.

Classes enter by being defined; ``domain.catalogue`` imports every context, so that a process which decodes the log knows all of them.
Names are permanent: they are in the log. A name defined twice is an error at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from eventsourcing.utils import register_topic

if TYPE_CHECKING:
    from domain.kernel.aggregate import Aggregate, Event
    from domain.kernel.command import Command

AGGREGATES: Final[dict[str, type[Aggregate]]] = {}
EVENTS: Final[dict[str, type[Event]]] = {}
COMMANDS: Final[dict[str, type[Command]]] = {}


def enter(table: dict[str, Any], name: str, cls: type[Any]) -> None:
    """Put ``cls`` under its wire name. Raises ``ValueError`` if the name is taken by another class."""
    known = table.get(name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise ValueError(f"wire name {name!r} is taken by {known.__module__}.{known.__qualname__}")
    table[name] = cls


def enter_topic(table: dict[str, Any], name: str, cls: type[Any]) -> None:
    """The same, and tell the ``eventsourcing`` library, which resolves and checks topics itself."""
    enter(table, name, cls)
    register_topic(name, cls)


def decode_event(aggregate_id: str, aggregate_type: str, at: Any, name: str, schema: int, version: int, data: Mapping[str, Any]) -> Event:
    """Rebuild an event from the log, upcasting old schemas. Raises ``LookupError`` for an unknown name or a schema from the future."""
    cls = EVENTS.get(name)
    if cls is None:
        raise LookupError(f"unknown event type {name!r}")
    if schema > cls.class_version:
        raise LookupError(f"{name} has schema {schema}; this version knows up to {cls.class_version}")
    fields = dict(data)
    for old in range(schema, cls.class_version):
        getattr(cls, f"upcast_v{old}_v{old + 1}")(fields)
    if "originator_topic" in cls.model_fields:
        fields["originator_topic"] = aggregate_type
    return cls(originator_id=aggregate_id, originator_version=version, timestamp=at, **fields)
