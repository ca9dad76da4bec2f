"""Recorders of positions: how far a projection has read an upstream application, alone or together with events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventsourcing.persistence import IntegrityError, ProcessRecorder, StoredEvent, Tracking, TrackingRecorder

from bus.recorder.events import JetStreamApplicationRecorder
from bus.recorder.stream import ConflictError, Record, RecorderStream, token

RACES = 20


class JetStreamTrackingRecorder(TrackingRecorder):
    """One subject per upstream application; positions only ever grow."""

    def __init__(self, stream: RecorderStream) -> None:
        super().__init__()
        self.stream = stream

    def insert_tracking(self, tracking: Tracking) -> None:
        """Raises ``IntegrityError`` unless it is further than what is recorded."""
        self.stream.bridge.call(self._insert_tracking(tracking))

    async def _insert_tracking(self, tracking: Tracking) -> None:
        try:
            await self.stream.put([await self.tracking_record(tracking)])
        except ConflictError as conflict:
            raise IntegrityError("another position was recorded at the same time") from conflict

    async def tracking_record(self, tracking: Tracking) -> Record:
        """What to store. Raises ``IntegrityError``."""
        subject = self._tracking_subject(tracking.application_name)
        last = await self.stream.last(subject)
        if last is not None and int(last.data) >= tracking.notification_id:
            raise IntegrityError(f"{tracking.application_name} is at {int(last.data)} already")
        return Record(subject, str(tracking.notification_id).encode(), {}, 0 if last is None else last.seq)

    def max_tracking_id(self, application_name: str) -> int | None:
        """How far it has read, None when not at all."""
        last = self.stream.bridge.call(self.stream.last(self._tracking_subject(application_name)))
        return None if last is None else int(last.data)

    def _tracking_subject(self, application_name: str) -> str:
        return self.stream.subject("t", token(application_name))


class JetStreamProcessRecorder(JetStreamTrackingRecorder, JetStreamApplicationRecorder, ProcessRecorder):
    """Events and the position that caused them, in one atomic batch."""

    def __init__(self, stream: RecorderStream) -> None:
        JetStreamApplicationRecorder.__init__(self, stream)

    def insert_events(self, stored_events: Sequence[StoredEvent], tracking: Tracking | None = None, **kwargs: Any) -> Sequence[int] | None:
        """Store all or none; the events' notification ids. Raises ``IntegrityError``."""
        del kwargs
        return self.stream.bridge.call(self._insert_with_tracking(stored_events, tracking))

    async def _insert_with_tracking(self, events: Sequence[StoredEvent], tracking: Tracking | None) -> list[int]:
        for _ in range(RACES):
            also = [] if tracking is None else [await self.tracking_record(tracking)]
            try:
                return await self.insert(events, also)
            except ConflictError:
                self._forget(events)
        raise IntegrityError("another writer was always faster")
