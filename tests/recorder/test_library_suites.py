"""The ``eventsourcing`` library's own persistence suites, against JetStream: on one server, and on three with three replicas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from eventsourcing.dcb.tests import DCBRecorderTestCase
from eventsourcing.persistence import StoredEvent, Tracking, TrackingRecorder
from eventsourcing.tests.application import ApplicationTestCase, ExampleApplicationTestCase
from eventsourcing.tests.persistence import (
    AggregateRecorderTestCase,
    ApplicationRecorderTestCase,
    InfrastructureFactoryTestCase,
    NonInterleavingNotificationIDsBaseCase,
    ProcessRecorderTestCase,
    TrackingRecorderTestCase,
)
from eventsourcing.tests.projection import (
    AggregateEventCountersProjectionTestCase,
    EventCountersView,
    EventCountersViewTestCase,
    EventSourcedProjectionTestCase,
    TaggedDecisionCountersProjectionTestCase,
)
from eventsourcing.utils import Environment, get_topic

from bus.recorder import JetStreamFactory
from bus.recorder.bridge import Bridge
from bus.recorder.dcb import JetStreamDCBRecorder
from bus.recorder.events import JetStreamAggregateRecorder, JetStreamApplicationRecorder
from bus.recorder.stream import Record, RecorderStream
from bus.recorder.tracking import JetStreamProcessRecorder, JetStreamTrackingRecorder
from bus.replies import UnansweredError
from bus.server import Cluster, Server

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # the suites check the library's own deprecations

_names = (f"S{n}" for n in itertools.count(1))


class OneServer:
    """The place: a server that all tests of this module share; every test has streams of its own."""

    replicas: ClassVar[int] = 1
    url: ClassVar[str] = ""

    def stream(self) -> RecorderStream:
        return RecorderStream(Bridge.to(self.url), next(_names), self.replicas)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PERSISTENCE_MODULE": "bus.recorder",
            "NATS_URL": self.url,
            "NATS_STREAM": next(_names),
            "NATS_REPLICAS": str(self.replicas),
            **more,
        }

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)


class ThreeServers(OneServer):
    """The place: three servers, every stream on all of them."""

    replicas = 3


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start both places once."""
    with Server(tmp_path_factory.mktemp("one")) as server, Cluster(tmp_path_factory.mktemp("three")) as cluster:
        OneServer.url, ThreeServers.url = server.url, cluster.url
        yield
        Bridge.close_all()


class Counters(JetStreamTrackingRecorder, EventCountersView):
    """A view whose counters and position are one batch."""

    def _count(self, name: str, tracking: Tracking) -> None:
        async def count() -> None:
            subject = self.stream.subject("c", name)
            last = await self.stream.last(subject)
            value = 1 if last is None else int(last.data) + 1
            counted = Record(subject, str(value).encode(), {}, 0 if last is None else last.seq)
            await self.stream.put([counted, await self.tracking_record(tracking)])

        self.stream.bridge.call(count())

    def _counted(self, name: str) -> int:
        last = self.stream.bridge.call(self.stream.last(self.stream.subject("c", name)))
        return 0 if last is None else int(last.data)

    def get_created_event_counter(self) -> int:
        return self._counted("created")

    def get_subsequent_event_counter(self) -> int:
        return self._counted("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._count("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._count("subsequent", tracking)


class AggregateRecorderSuite(AggregateRecorderTestCase):
    def create_recorder(self) -> JetStreamAggregateRecorder:
        return JetStreamAggregateRecorder(self.stream())


class ApplicationRecorderSuite(ApplicationRecorderTestCase):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.stream())

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TrackingRecorderSuite(TrackingRecorderTestCase):
    def create_recorder(self) -> JetStreamTrackingRecorder:
        return JetStreamTrackingRecorder(self.stream())


class ProcessRecorderSuite(ProcessRecorderTestCase):
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.stream())


class NonInterleavingSuite(NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.stream())


class FactorySuite(InfrastructureFactoryTestCase[JetStreamFactory]):
    def setUp(self) -> None:
        self.env = Environment("App", self.environment())
        super().setUp()

    def expected_factory_class(self) -> type[JetStreamFactory]:
        return JetStreamFactory

    def expected_aggregate_recorder_class(self) -> type[JetStreamAggregateRecorder]:
        return JetStreamAggregateRecorder

    def expected_application_recorder_class(self) -> type[JetStreamApplicationRecorder]:
        return JetStreamApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[JetStreamTrackingRecorder]:
        return JetStreamTrackingRecorder

    def tracking_recorder_subclass(self) -> type[TrackingRecorder]:
        return Counters

    def expected_process_recorder_class(self) -> type[JetStreamProcessRecorder]:
        return JetStreamProcessRecorder


class ExampleApplicationSuite(ExampleApplicationTestCase):
    expected_factory_topic = get_topic(JetStreamFactory)


class ApplicationSuite(ApplicationTestCase):
    """Every test counts notifications from 1, so each has an environment of its own."""


class CountersViewSuite(EventCountersViewTestCase):
    def construct_event_counters_view(self) -> EventCountersView:
        return Counters(self.stream())


class CountersProjectionSuite(AggregateEventCountersProjectionTestCase):
    view_class = Counters


class EventSourcedProjectionSuite(EventSourcedProjectionTestCase):
    """The application and the projection, which is one too, each have a stream."""

    def setUp(self) -> None:
        self.env = {"COUNTERS_NATS_STREAM": next(_names)}


class TaggedDecisionsSuite(TaggedDecisionCountersProjectionTestCase):
    view_class = Counters

    def setUp(self) -> None:
        self.env = {"MAPPER_TOPIC": "eventsourcing.dcb.msgpack:MessagePackMapper"}


class DCBRecorderSuite(DCBRecorderTestCase):
    def test_append_read(self) -> None:
        self._test_append_read(JetStreamDCBRecorder(self.stream()))

    def test_append_subscribe(self) -> None:
        self._test_append_subscribe(JetStreamDCBRecorder(self.stream()))


SUITES: dict[str, type[Any]] = {
    "AggregateRecorder": AggregateRecorderSuite,
    "ApplicationRecorder": ApplicationRecorderSuite,
    "TrackingRecorder": TrackingRecorderSuite,
    "ProcessRecorder": ProcessRecorderSuite,
    "NonInterleaving": NonInterleavingSuite,
    "Factory": FactorySuite,
    "ExampleApplication": ExampleApplicationSuite,
    "Application": ApplicationSuite,
    "CountersView": CountersViewSuite,
    "CountersProjection": CountersProjectionSuite,
    "EventSourcedProjection": EventSourcedProjectionSuite,
    "TaggedDecisions": TaggedDecisionsSuite,
    "DCBRecorder": DCBRecorderSuite,
}
for _name, _suite in SUITES.items():
    for _place in (OneServer, ThreeServers):
        _made = type(f"Test{_name}On{_place.__name__}", (_place, _suite), {"__module__": __name__})
        globals()[_made.__name__] = pytest.mark.slow(_made) if _place is ThreeServers else _made
del _made, _suite, _place
for _name in [n for n, v in list(globals().items()) if isinstance(v, type) and n.endswith(("TestCase", "BaseCase", "Suite"))]:
    del globals()[_name]


def test_an_id_that_is_no_token_keeps_its_events_apart() -> None:
    recorder = JetStreamAggregateRecorder(RecorderStream(Bridge.to(OneServer.url), next(_names), 1))
    for identifier in ("a.b", "a b", "a.>", "~YS5i", "a"):
        recorder.insert_events([StoredEvent(identifier, 1, "topic", identifier.encode())])
    for identifier in ("a.b", "a b", "a.>", "~YS5i", "a"):
        assert [e.state for e in recorder.select_events(identifier)] == [identifier.encode()]


def test_a_lost_acknowledgement_stores_the_event_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = RecorderStream(Bridge.to(OneServer.url), next(_names), 1)
    recorder = JetStreamApplicationRecorder(stream)
    publish, lost = stream._publish, iter([True, True, False])

    async def lossy(messages: Any) -> Any:
        ack = await publish(messages)
        if next(lost):
            raise UnansweredError("lost")
        return ack

    monkeypatch.setattr(stream, "_publish", lossy)
    identifier = uuid4()
    assert list(recorder.insert_events([StoredEvent(identifier, 1, "topic", b"1")]) or []) == [1]
    assert len(recorder.select_events(identifier)) == 1
