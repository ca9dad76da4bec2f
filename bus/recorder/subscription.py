"""Subscriptions: stored events and new ones, in order, as a blocking iterator.

One pull consumer in the background; whole batches cross to the caller's thread, not single events. A plain core subscription would be
wrong: it sees messages before they are stored, and those that the stream then refuses (reference/jetstream-eventstore.md §2.2).
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from typing import Final

import nats.errors
from eventsourcing.persistence import ApplicationRecorder, Notification, Subscription
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError

from bus.direct import Stored
from bus.recorder.stream import RecorderStream

BATCH: Final = 500
PULL_S: Final = 20.0
TOPIC: Final = "T"


class JetStreamSubscription(Subscription[ApplicationRecorder]):
    """See the module. ``stop`` may be called from any thread, also before the context manager is entered."""

    def __init__(
        self,
        recorder: ApplicationRecorder,
        stream: RecorderStream,
        decode: Callable[[Stored], Notification],
        gt: int | None = None,
        topics: Sequence[str] = (),
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._stream = stream
        self._decode = decode
        self._batches: queue.SimpleQueue[list[Notification] | BaseException | None] = queue.SimpleQueue()
        self._batch: list[Notification] = []
        self._next = 0
        self._pulling = stream.bridge.start(self._pull(gt or 0))

    def stop(self) -> None:
        """End the iteration, also one that is waiting."""
        super().stop()
        self._pulling.cancel()
        self._batches.put(None)

    def __next__(self) -> Notification:
        while not self._has_been_stopped:
            if self._next < len(self._batch):
                self._next += 1
                return self._batch[self._next - 1]
            arrived = self._batches.get()
            if isinstance(arrived, BaseException):
                raise arrived
            self._batch, self._next = arrived or [], 0
        raise StopIteration

    async def _pull(self, after: int) -> None:
        try:
            while True:
                after = await self._from_one_consumer(after)
        except Exception as error:  # noqa: BLE001 - it is raised again where the caller waits
            self._batches.put(error)

    async def _from_one_consumer(self, after: int) -> int:
        """Hand over batches until the consumer is lost; the last position that was handed over."""
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=60,
        )
        try:
            events = self._stream.subject("e", ">")  # nats-py takes the filter from here only
            pull = await self._stream.bridge.nc.jetstream().pull_subscribe(events, stream=self._stream.name, config=config)
        except (APIError, nats.errors.Error):
            await asyncio.sleep(0.2)
            return after
        try:
            while True:
                try:
                    messages = await pull.fetch(BATCH, timeout=PULL_S)
                except nats.errors.TimeoutError:
                    continue
                except (APIError, nats.errors.Error):
                    return after
                after = messages[-1].metadata.sequence.stream
                self._batches.put([self._decode(found) for found in map(_found, messages) if self._wanted(found)])
        finally:
            await pull.unsubscribe()

    def _wanted(self, found: Stored) -> bool:
        return not self._topics or found.headers[TOPIC] in self._topics


def _found(message: Msg) -> Stored:
    return Stored(message.metadata.sequence.stream, message.subject, message.data, dict(message.headers or {}))
