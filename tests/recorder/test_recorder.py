"""The recorder's own promises: a lost acknowledgement does no harm, whoever wrote meanwhile; streams are as they were asked for."""

from __future__ import annotations

import itertools
from functools import partial
from uuid import uuid4

import pytest
from eventsourcing.persistence import IntegrityError, OperationalError, StoredEvent, Tracking
from eventsourcing.utils import Environment

from bus.connection import connect
from bus.recorder import JetStreamFactory
from bus.recorder.bridge import Bridge
from bus.recorder.dcb import JetStreamDCBRecorder
from bus.recorder.events import JetStreamApplicationRecorder
from bus.recorder.snapshots import JetStreamSnapshotRecorder
from bus.recorder.stream import RecorderStream
from bus.recorder.tracking import JetStreamProcessRecorder
from bus.replies import UnansweredError
from bus.requests import call
from bus.server import Cluster, Server
from domain.kernel.errors import Refused
from strandline.cluster import Place, prepare

_names = (f"R{n}" for n in itertools.count(1))


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)])
def place(request, tmp_path_factory):
    """(URL, replicas): one server, then three."""
    kind = Server if request.param == 1 else Cluster
    with kind(tmp_path_factory.mktemp("nats")) as server:
        yield server.url, request.param
        Bridge.close_all()


def stream(place, name: str | None = None) -> RecorderStream:
    return RecorderStream(Bridge.to(place[0]), name or next(_names), place[1])


def lossy(one: RecorderStream, monkeypatch, meanwhile) -> None:
    """Lose the acknowledgement of the next write of ``one``, and do something else before it is sent again."""
    publish, lost = one._publish, iter([True])

    async def losing(messages):
        ack = await publish(messages)
        if next(lost, False):
            await meanwhile()
            raise UnansweredError("lost")
        return ack

    monkeypatch.setattr(one, "_publish", losing)


def event(identifier, version: int, by: str) -> StoredEvent:
    return StoredEvent(identifier, version, "topic", by.encode())


@pytest.mark.parametrize("count", [1, 3])
def test_events_whose_acknowledgement_was_lost_are_known_under_those_of_others(place, monkeypatch, count) -> None:
    mine, other = (JetStreamApplicationRecorder(stream(place, name)) for name in [next(_names)] * 2)
    identifier = uuid4()
    mine.insert_events([event(identifier, 1, "mine")])
    versions = range(2, 2 + count)

    async def another_writer() -> None:
        other._forget([event(identifier, 1, "")])
        await other.insert([event(identifier, 2 + count, "other"), event(uuid4(), 1, "other")])

    lossy(mine.stream, monkeypatch, another_writer)
    assert list(mine.insert_events([event(identifier, v, "mine") for v in versions]) or []) == list(versions)
    stored = [(e.originator_version, e.state) for e in mine.select_events(identifier)]
    assert stored == [(v, b"mine") for v in range(1, 2 + count)] + [(2 + count, b"other")]
    with pytest.raises(IntegrityError):
        mine.insert_events([event(identifier, 2 + count, "mine")])
    mine.insert_events([event(identifier, 3 + count, "mine")])


def test_a_lost_acknowledgement_of_a_write_that_lost_is_a_conflict(place, monkeypatch) -> None:
    mine, other = (JetStreamApplicationRecorder(stream(place, name)) for name in [next(_names)] * 2)
    identifier, publish, lost = uuid4(), mine.stream._publish, iter([True])

    async def losing(messages):
        if next(lost, False):
            await other.insert([event(identifier, 1, "other")])
            raise UnansweredError("it never arrived")
        return await publish(messages)

    monkeypatch.setattr(mine.stream, "_publish", losing)
    with pytest.raises(IntegrityError):
        mine.insert_events([event(identifier, 1, "mine")])
    assert [e.state for e in mine.select_events(identifier)] == [b"other"]


def test_the_same_holds_for_snapshots_tracking_and_tagged_events(place, monkeypatch) -> None:
    from eventsourcing.dcb.api import DCBEvent  # noqa: PLC0415 - needed here only

    snapshots = JetStreamSnapshotRecorder(Bridge.to(place[0]), next(_names), place[1])

    async def nothing() -> None:
        return None

    lossy(snapshots.stream, monkeypatch, nothing)
    snapshots.insert_events([event("a", 7, "snapshot")])
    name = next(_names)
    process, later = (JetStreamProcessRecorder(stream(place, name)) for _ in range(2))

    async def further() -> None:
        await later._insert_with_tracking([event("b", 1, "other")], Tracking("up", 2))

    lossy(process.stream, monkeypatch, further)
    process.insert_events([event("a", 1, "mine")], tracking=Tracking("up", 1))
    assert [n.state for n in process.select_notifications(None, 10)] == [b"mine", b"other"]
    assert process.max_tracking_id("up") == 2
    name = next(_names)
    tagged, others = (JetStreamDCBRecorder(stream(place, name)) for _ in range(2))

    async def more() -> None:
        await others._append([DCBEvent("t", b"other", ["x"])], None)

    lossy(tagged.stream, monkeypatch, more)
    tagged.append([DCBEvent("t", b"mine", ["x"]), DCBEvent("t", b"mine too", ["x"])])
    assert [found.event.data for found in tagged.read()] == [b"mine", b"mine too", b"other"]


def test_an_older_snapshot_is_taken_after_a_newer_one(place) -> None:
    """As the library's own recorders do (reference/jetstream-eventstore.md §2.3)."""
    snapshots = JetStreamSnapshotRecorder(Bridge.to(place[0]), next(_names), place[1])
    for version in (20, 10, 30, 15):
        snapshots.insert_events([event("a", version, str(version))])
    assert [e.originator_version for e in snapshots.select_events("a")] == [10, 15, 20, 30]
    assert [e.originator_version for e in snapshots.select_events("a", desc=True, limit=1)] == [30]
    assert [e.originator_version for e in snapshots.select_events("a", lte=16, desc=True, limit=1)] == [15]
    with pytest.raises(IntegrityError):
        snapshots.insert_events([event("a", 10, "again")])


def test_a_subscription_brings_events_and_not_the_positions_stored_with_them(place) -> None:
    process = JetStreamProcessRecorder(stream(place))
    with process.subscribe() as following:
        process.insert_events([event("a", 1, "1")], tracking=Tracking("up", 1))
        process.insert_events([event("a", 2, "2")], tracking=Tracking("up", 2))
        assert [next(following).state, next(following).state] == [b"1", b"2"]


def test_the_stream_has_the_name_and_the_replicas_that_the_environment_says(place) -> None:
    url, replicas = place
    env = {"NATS_URL": url, "NATS_STREAM": next(_names), "NATS_REPLICAS": "1"}
    factory = JetStreamFactory(Environment("Bank", env))
    recorder = factory.application_recorder()
    assert isinstance(recorder, JetStreamApplicationRecorder)
    assert recorder.stream.name == env["NATS_STREAM"]
    recorder.insert_events([event("a", 1, "1")])
    assert JetStreamFactory(Environment("Bank", {"NATS_URL": url})).application_recorder().stream.name == "BANK"
    three = JetStreamFactory(Environment("Bank", {**env, "NATS_REPLICAS": "3"}))
    if replicas == 1:
        with pytest.raises(OperationalError, match=env["NATS_STREAM"]):
            three.application_recorder()
    else:
        again = three.application_recorder()
        found = again.stream.bridge.call(call(again.stream.bridge.nc, f"STREAM.INFO.{env['NATS_STREAM']}"))
        assert (found["config"]["num_replicas"], [e.state for e in again.select_events("a")]) == (3, [b"1"])
        with pytest.raises(OperationalError, match="num_replicas is 3 and cannot become 1"):
            factory.application_recorder()
    for wrong in ("2", "many"):
        with pytest.raises(OSError, match="NATS_REPLICAS"):
            JetStreamFactory(Environment("Bank", {**env, "NATS_REPLICAS": wrong}))


def test_a_server_with_tls_is_believed_by_the_certificates_that_the_environment_names(tmp_path, monkeypatch) -> None:
    server = Server(tmp_path / "nats")
    prepare(tmp_path, [Place("nats", "127.0.0.1", server.port, 1)], {}, "127.0.0.1:0")
    tls = tmp_path / "tls"
    server.config = f'tls {{ cert_file: "{tls}/nats.pem", key_file: "{tls}/nats.key", ca_file: "{tls}/ca.pem", timeout: 5 }}'
    env = {"NATS_URL": f"tls://127.0.0.1:{server.port}", "NATS_STREAM": "SAFE"}
    with server:
        recorder = JetStreamFactory(Environment("Bank", {**env, "NATS_CA": str(tls / "ca.pem")})).application_recorder()
        assert list(recorder.insert_events([event("a", 1, "1")]) or []) == [1]
        monkeypatch.setattr("bus.recorder.bridge.connect", partial(connect, timeout=0.5))
        with pytest.raises(Refused, match="certificate"):
            JetStreamFactory(Environment("Bank", env))
        Bridge.close_all()
