"""Makes recorders from environment variables, as the ``eventsourcing`` library asks for them."""

from __future__ import annotations

from typing import Any, Final

from eventsourcing.dcb.api import DCBRecorder
from eventsourcing.dcb.persistence import DCBInfrastructureFactory
from eventsourcing.persistence import AggregateRecorder, ApplicationRecorder, InfrastructureFactory, ProcessRecorder, TrackingRecorder
from eventsourcing.utils import Environment, resolve_topic

from bus.recorder.bridge import Bridge
from bus.recorder.dcb import JetStreamDCBRecorder
from bus.recorder.events import JetStreamAggregateRecorder, JetStreamApplicationRecorder
from bus.recorder.snapshots import JetStreamSnapshotRecorder
from bus.recorder.stream import RecorderStream, token
from bus.recorder.tracking import JetStreamProcessRecorder, JetStreamTrackingRecorder


class JetStreamFactory(DCBInfrastructureFactory[Any], InfrastructureFactory[Any]):
    """The stream of events is ``NATS_STREAM``, or has the application's name; ``…_SNAPSHOTS`` and ``…_TRACKING`` stand beside it.

    Like every setting of the library's, each may be given for one application only: ``<APPLICATION>_NATS_STREAM``.
    """

    NATS_URL: Final = "NATS_URL"
    NATS_CREDS: Final = "NATS_CREDS"
    NATS_CA: Final = "NATS_CA"
    NATS_STREAM: Final = "NATS_STREAM"
    NATS_REPLICAS: Final = "NATS_REPLICAS"

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        url = self.env.get(self.NATS_URL)
        if not url:
            raise OSError(f"{self.NATS_URL} is not set")
        replicas = self.env.get(self.NATS_REPLICAS) or "1"
        if replicas not in {"1", "3"}:
            raise OSError(f"{self.NATS_REPLICAS} is {replicas!r}; it can be 1 or 3")
        self._bridge = Bridge.to(url, self.env.get(self.NATS_CREDS), self.env.get(self.NATS_CA))
        self._replicas = int(replicas)
        self._name = self.env.get(self.NATS_STREAM) or token(self.env.name or "app").upper()

    def _stream(self, suffix: str = "") -> RecorderStream:
        return RecorderStream(self._bridge, self._name + suffix, self._replicas)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Of events, or of snapshots."""
        if purpose == "snapshots":
            return JetStreamSnapshotRecorder(self._bridge, f"{self._name}_SNAPSHOTS", self._replicas)
        return JetStreamAggregateRecorder(self._stream())

    def application_recorder(self) -> ApplicationRecorder:
        """Of an application's events."""
        return JetStreamApplicationRecorder(self._stream())

    def tracking_recorder(self, tracking_recorder_class: type[TrackingRecorder] | None = None) -> TrackingRecorder:
        """Of positions; a class of one's own comes as an argument or by topic, and takes the stream."""
        chosen: Any = tracking_recorder_class
        if chosen is None:
            topic = self.env.get(self.TRACKING_RECORDER_TOPIC)
            chosen = resolve_topic(topic) if topic else JetStreamTrackingRecorder
        recorder: TrackingRecorder = chosen(self._stream("_TRACKING"))
        return recorder

    def process_recorder(self) -> ProcessRecorder:
        """Of events and positions together."""
        return JetStreamProcessRecorder(self._stream())

    def dcb_recorder(self) -> DCBRecorder:
        """Of events with tags."""
        return JetStreamDCBRecorder(self._stream())
