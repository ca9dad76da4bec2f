"""The recorder of snapshots: the subject is aggregate and version, and the stream itself refuses a second message per subject.

Versions need not be contiguous and may come out of order: an older snapshot after a newer one is accepted, as the library's own
recorders do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from eventsourcing.persistence import AggregateRecorder, IntegrityError, StoredEvent

from bus.recorder.bridge import Bridge
from bus.recorder.events import headers_of, stored_event
from bus.recorder.stream import ConflictError, Record, RecorderStream, token


class JetStreamSnapshotRecorder(AggregateRecorder):
    """Snapshots of aggregates."""

    def __init__(self, bridge: Bridge, name: str, replicas: int) -> None:
        super().__init__()
        self.stream = RecorderStream(bridge, name, replicas, max_msgs_per_subject=1, discard="new", discard_new_per_subject=True)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store all or none. Raises ``IntegrityError`` when there is one of that version."""
        del kwargs
        records = [Record(self.stream.subject(token(e.originator_id), e.originator_version), e.state, headers_of(e)) for e in stored_events]
        if records:
            try:
                self.stream.bridge.call(self.stream.put(records))
            except ConflictError as conflict:
                raise IntegrityError("there is a snapshot of that version") from conflict
        return None

    def select_events(
        self, originator_id: UUID | str, *, gt: int | None = None, lte: int | None = None, desc: bool = False, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Snapshots of one aggregate by version."""
        found = self.stream.bridge.call(self.stream.scan(self.stream.subject(token(originator_id), "*")))
        events = sorted((stored_event(message) for message in found), key=lambda e: e.originator_version, reverse=desc)
        within = [e for e in events if (gt is None or e.originator_version > gt) and (lte is None or e.originator_version <= lte)]
        return within if limit is None else within[:limit]
