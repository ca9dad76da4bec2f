"""The base of all aggregates: the ``eventsourcing`` library's, with closed pydantic events and explicit time.

An aggregate method is a decision. It records events, records none because the thing is already so, or raises
:class:`~domain.kernel.errors.Refused`. It never waits, and what it needs to know (time, ids, look-ups) comes in as arguments.
An event's ``apply`` only writes down what the event says; it never refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from eventsourcing.domain import BaseAggregate, CanInitAggregate, CanMutateAggregate
from pydantic import BaseModel, ConfigDict, TypeAdapter

from domain.kernel.lifecycle import Lifecycle
from domain.kernel.registry import AGGREGATES, EVENTS, enter_topic

ENVELOPE_FIELDS = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})
"""Event attributes that the commit's envelope carries, so that an event's ``data`` does not repeat them."""


class Record(BaseModel):
    """A frozen, closed value: in events, commands, orders and reports alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(Record, CanMutateAggregate[str]):
    """A fact about one aggregate. ``TOPIC`` is its permanent name in the log, ``class_version`` the schema of its data.

    When the data changes shape, ``class_version`` grows and a static ``upcast_v<N>_v<N+1>(data)`` mends old data in place.
    """

    TOPIC: ClassVar[str]
    class_version: ClassVar[int] = 1
    originator_id: str
    originator_version: int
    timestamp: datetime

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "TOPIC" in cls.__dict__:
            enter_topic(EVENTS, cls.TOPIC, cls)

    def _as_dict(self) -> dict[str, Any]:
        return self.__dict__

    def data(self) -> dict[str, Any]:
        """The event's own fields, JSON-ready, without what the envelope says; unset optionals are left out to keep the log small."""
        return self.model_dump(mode="json", exclude=set(ENVELOPE_FIELDS), exclude_defaults=True)


class CreatedEvent(Event, CanInitAggregate[str]):
    """The first event of an aggregate; its ``apply`` sets every declared attribute."""

    originator_topic: str

    def mutate(self, aggregate: Any) -> Any:
        """Build the aggregate without its ``__init__``: the library's own way wants constructor arguments, ours are events."""
        if aggregate is not None:
            raise ValueError(f"{self.TOPIC} begins {self.originator_id}, which already exists")
        cls = AGGREGATES[self.originator_topic]
        made = cls.__new__(cls)
        made.__base_init__(self.originator_id, self.originator_version, self.timestamp)
        self.apply(made)
        return made


class Aggregate(BaseAggregate[str]):
    """One consistency boundary. Subclasses set ``TOPIC``, declare annotated attributes, and have no ``__init__``.

    ``project`` is part of an aggregate's address and therefore not of its state.
    """

    TOPIC: ClassVar[str]
    LIFECYCLES: ClassVar[Mapping[str, Lifecycle[Any]]] = {}
    """The lifecycle tables, each under the name of the attribute that holds its state."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "TOPIC" in cls.__dict__:
            enter_topic(AGGREGATES, cls.TOPIC, cls)

    @classmethod
    def begin(cls, event_class: type[CreatedEvent], id: str, at: datetime, **data: Any) -> Self:  # noqa: A002
        """A new aggregate with its first event."""
        return cls._create(event_class, id=id, timestamp=at, **data)

    def record(self, event_class: type[Event], at: datetime, **data: Any) -> None:
        """Record one more fact and apply it."""
        self.trigger_event(event_class, timestamp=at, **data)


A = TypeVar("A", bound=Aggregate)


@cache
def _fields(cls: type[Aggregate]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {
        name: TypeAdapter(hint)
        for name, hint in hints.items()
        if not name.startswith("_") and name.islower() and name not in BaseAggregate.__annotations__
    }


def take_state(aggregate: Aggregate) -> dict[str, Any]:
    """The aggregate's declared attributes as JSON-ready data, for a snapshot."""
    state = {name: adapter.dump_python(getattr(aggregate, name), mode="json") for name, adapter in _fields(type(aggregate)).items()}
    state["_created_on"] = aggregate.created_on.isoformat()
    state["_modified_on"] = aggregate.modified_on.isoformat()
    return state


def restore_state(cls: type[A], id: str, version: int, state: dict[str, Any]) -> A:  # noqa: A002
    """The aggregate that :func:`take_state` described. Raises ``ValueError`` when the state does not fit the class any more."""
    aggregate = cls.__new__(cls)
    aggregate.__base_init__(id, version, datetime.fromisoformat(state["_created_on"]))
    aggregate.modified_on = datetime.fromisoformat(state["_modified_on"])
    for name, adapter in _fields(cls).items():
        if name not in state:
            raise ValueError(f"a snapshot of {cls.TOPIC} {id} knows nothing of {name}")
        setattr(aggregate, name, adapter.validate_python(state[name]))
    return aggregate
