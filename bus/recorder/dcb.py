"""The recorder for dynamic consistency boundaries: the query is checked up to the head of the stream, and the append expects that head.

Correct, and every writer waits for every other one: good for small boundaries, not for a busy log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import nats.errors
import orjson
from eventsourcing.dcb.api import DCBAppendCondition, DCBEvent, DCBQuery, DCBReadResponse, DCBRecorder, DCBSequencedEvent, DCBSubscription
from eventsourcing.dcb.persistence import DCBListenNotifySubscription
from eventsourcing.dcb.popo import SimpleDCBReadResponse
from eventsourcing.persistence import IntegrityError, ProgrammingError
from nats.js import api
from nats.js.errors import APIError

from bus.direct import Stored
from bus.recorder.stream import EXPECT_STREAM, ConflictError, Record, RecorderStream

TYPE: Final = "T"
TAGS: Final = "G"


def _matches(found: Stored, query: DCBQuery | None) -> bool:
    if query is None or not query.items:
        return True
    tags = set(orjson.loads(found.headers[TAGS]))
    return any((not item.types or found.headers[TYPE] in item.types) and tags >= set(item.tags) for item in query.items)


class JetStreamDCBRecorder(DCBRecorder):
    """Events with types and tags in one stream."""

    def __init__(self, stream: RecorderStream) -> None:
        self.stream = stream

    def read(self, query: DCBQuery | None = None, *, after: int | None = None, limit: int | None = None) -> DCBReadResponse:
        """What matches ``query`` after a position, and the head it was read up to."""
        events, head = self.stream.bridge.call(self._read(query, after, limit))
        return SimpleDCBReadResponse(iter(events), head)

    async def _read(self, query: DCBQuery | None, after: int | None, limit: int | None) -> tuple[list[DCBSequencedEvent], int | None]:
        if limit == 0:
            return [], None
        head = await self.stream.position()
        found = await self._matching(query, after, head, limit)
        events = [DCBSequencedEvent(DCBEvent(m.headers[TYPE], m.data, orjson.loads(m.headers[TAGS])), m.seq) for m in found]
        if limit is None:
            return events, head or None
        return events, events[-1].position if events else None

    async def _matching(self, query: DCBQuery | None, after: int | None, head: int, limit: int | None) -> list[Stored]:
        return await self.stream.scan(
            self.stream.subject(">"), (after or 0) + 1, limit, stop=head, keep=lambda found: _matches(found, query)
        )

    def append(self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None = None) -> int:
        """Store all or none; the last one's position. Raises ``IntegrityError`` when ``condition`` fails."""
        if not events:
            raise ProgrammingError("nothing to append")
        return self.stream.bridge.call(self._append(events, condition))

    async def _append(self, events: Sequence[DCBEvent], condition: DCBAppendCondition | None) -> int:
        while True:
            headers = [{TYPE: e.type, TAGS: orjson.dumps(e.tags).decode()} for e in events]
            if condition is not None:
                head = await self.stream.position()
                if await self._matching(condition.fail_if_events_match, condition.after, head, 1):
                    raise IntegrityError(condition)
                headers[0][EXPECT_STREAM] = str(head)
            records = [Record(self.stream.subject("d"), e.data, h) for e, h in zip(events, headers, strict=True)]
            try:
                return (await self.stream.put(records))[-1]
            except ConflictError:
                await asyncio.sleep(0)

    def subscribe(self, query: DCBQuery | None = None, *, after: int | None = None) -> DCBSubscription[JetStreamDCBRecorder]:
        """What matches ``query``, stored and to come."""
        return JetStreamDCBSubscription(recorder=self, query=query, after=after)


class JetStreamDCBSubscription(DCBListenNotifySubscription[JetStreamDCBRecorder]):
    """The library's pull loop, woken by a headers-only consumer."""

    def __init__(self, recorder: JetStreamDCBRecorder, query: DCBQuery | None = None, after: int | None = None) -> None:
        self._waking: Future[None] | None = None
        super().__init__(recorder=recorder, query=query, after=after)
        self._waking = recorder.stream.bridge.start(self._wake(after or 0))

    def stop(self) -> None:
        """End the iteration."""
        super().stop()
        if self._waking is not None:
            self._waking.cancel()

    async def _wake(self, after: int) -> None:
        stream = self._recorder.stream
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            headers_only=True,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=60,
        )
        pull = await stream.bridge.nc.jetstream().pull_subscribe("", stream=stream.name, config=config)
        while True:
            try:
                await pull.fetch(500, timeout=20)
            except nats.errors.TimeoutError:
                continue
            except (APIError, nats.errors.Error):
                await asyncio.sleep(0.5)
            self._has_been_notified.set()
