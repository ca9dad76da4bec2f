"""Recorders of events: per aggregate, and as one application sequence. Notification id = stream sequence, without gaps.

The version of an aggregate's last event is remembered with its position, so that an insert needs no look-up; what is remembered wrongly
costs a conflict, which the server sees, and one look-up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    Notification,
    StoredEvent,
    Subscription,
)

from bus.direct import Stored
from bus.recorder.stream import ConflictError, Record, RecorderStream, token
from bus.recorder.subscription import JetStreamSubscription

E = TypeVar("E", StoredEvent, Notification)

ORIGINATOR: Final = "O"
VERSION: Final = "V"
TOPIC: Final = "T"
REMEMBERED: Final = 100_000
RACES: Final = 20


def headers_of(event: StoredEvent) -> dict[str, str]:
    """What stands in the headers of an event's message; ids keep their kind."""
    identifier = event.originator_id
    shown = f"u{identifier.hex}" if isinstance(identifier, UUID) else f"s{identifier}"
    return {ORIGINATOR: shown, VERSION: str(event.originator_version), TOPIC: event.topic}


def _fields(found: Stored) -> dict[str, Any]:
    shown = found.headers[ORIGINATOR]
    return {
        "originator_id": UUID(shown[1:]) if shown[0] == "u" else shown[1:],
        "originator_version": int(found.headers[VERSION]),
        "topic": found.headers[TOPIC],
        "state": found.data,
    }


def stored_event(found: Stored) -> StoredEvent:
    """The event in a message."""
    return StoredEvent(**_fields(found))


def notification(found: Stored) -> Notification:
    """The event in a message, with its place in the application sequence."""
    return Notification(id=found.seq, **_fields(found))


class JetStreamAggregateRecorder(AggregateRecorder):
    """Events of aggregates: one subject per aggregate, one message per event."""

    def __init__(self, stream: RecorderStream) -> None:
        super().__init__()
        self.stream = stream
        self._tails: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store all or none. Raises ``IntegrityError`` when one of the versions exists."""
        del kwargs
        self.stream.bridge.call(self.insert(stored_events))
        return None

    def select_events(
        self, originator_id: UUID | str, *, gt: int | None = None, lte: int | None = None, desc: bool = False, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Events of one aggregate by version."""
        return self.stream.bridge.call(self._select(originator_id, gt, lte, desc, limit))

    async def insert(self, events: Sequence[StoredEvent], also: Sequence[Record] = ()) -> list[int]:
        """Store events, and ``also`` what belongs to them, in one batch; the events' positions."""
        if not events and not also:
            return []
        for race in range(RACES):
            records = [*also, *await self._records(events, guess=race == 0)]
            try:
                positions = await self.stream.put(records)
            except ConflictError as conflict:
                if also:
                    raise
                self._forget(events)
                await asyncio.sleep(0.001 * race)
                last = conflict
                continue
            mine = positions[len(also) :]
            for event, seq in zip(events, mine, strict=True):
                self._remember(self._subject(event.originator_id), event.originator_version, seq)
            return mine
        raise IntegrityError("another writer was always faster") from last

    async def _records(self, events: Sequence[StoredEvent], *, guess: bool) -> list[Record]:
        records: list[Record] = []
        versions: dict[str, int] = {}
        for event in events:
            subject = self._subject(event.originator_id)
            expect: int | None = None
            if subject not in versions:
                versions[subject], expect = await self._tail(subject, guess=guess and event.originator_version <= 1)
            if event.originator_version <= versions[subject]:
                raise IntegrityError(f"version {event.originator_version} is recorded already; the last is {versions[subject]}")
            versions[subject] = event.originator_version
            records.append(Record(subject, event.state, headers_of(event), expect))
        return records

    async def _tail(self, subject: str, *, guess: bool) -> tuple[int, int]:
        """Version and position of an aggregate's last event. ``guess``: it looks new, so bet on it; the server checks."""
        known = self._tails.get(subject)
        if known is not None:
            return known
        if guess:
            return -1, 0
        last = await self.stream.last(subject)
        return (-1, 0) if last is None else (int(last.headers[VERSION]), last.seq)

    def _remember(self, subject: str, version: int, seq: int) -> None:
        self._tails[subject] = (version, seq)
        self._tails.move_to_end(subject)
        while len(self._tails) > REMEMBERED:
            self._tails.popitem(last=False)

    def _forget(self, events: Sequence[StoredEvent]) -> None:
        for event in events:
            self._tails.pop(self._subject(event.originator_id), None)

    def _subject(self, originator_id: object) -> str:
        return self.stream.subject("e", token(originator_id))

    async def _select(self, originator_id: object, gt: int | None, lte: int | None, desc: bool, limit: int | None) -> list[StoredEvent]:
        subject = self._subject(originator_id)
        first = 1
        known = self._tails.get(subject)
        if gt is not None and known is not None and known[0] == gt:
            first = known[1] + 1

        def wanted(found: Stored) -> bool:
            version = int(found.headers[VERSION])
            return (gt is None or version > gt) and (lte is None or version <= lte)

        plain = gt is None and lte is None
        found = await self.stream.scan(subject, first, None if desc else limit, keep=None if plain else wanted)
        events = [stored_event(message) for message in found]
        if desc:
            events.reverse()
        return events if limit is None else events[:limit]


class JetStreamApplicationRecorder(JetStreamAggregateRecorder, ApplicationRecorder):
    """The same, and the sequence of all events."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store all or none; their notification ids. Raises ``IntegrityError``."""
        del kwargs
        return self.stream.bridge.call(self.insert(stored_events))

    def select_notifications(
        self, start: int | None, limit: int, stop: int | None = None, topics: Sequence[str] = (), *, inclusive_of_start: bool = True
    ) -> Sequence[Notification]:
        """A section of the application sequence."""
        first = 1 if start is None else start if inclusive_of_start else start + 1
        keep = (lambda found: found.headers[TOPIC] in topics) if topics else None
        found = self.stream.bridge.call(self.stream.scan(self.stream.subject("e", ">"), first, limit, stop, keep))
        return [notification(message) for message in found]

    def max_notification_id(self) -> int | None:
        """The last position, None while there is none."""
        last = self.stream.bridge.call(self.stream.last(self.stream.subject("e", ">")))
        return None if last is None else last.seq

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """Everything after ``gt``, stored and to come."""
        return JetStreamSubscription(self, self.stream, notification, gt, topics)
