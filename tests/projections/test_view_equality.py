"""A view is a function of the log: however it got where it is, it equals one built from zero, byte for byte."""

from random import Random

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import examples
from support.histories import NODES, History

from bus.commit import decode
from domain.kernel.aggregate import ENVELOPE_FIELDS
from domain.kernel.registry import EVENTS
from domain.nodes.node import Liveness, Node
from domain.templates.compat import Compat, judge, overall, summarise
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template, TemplateState
from projections.engine import Engine
from projections.export import digest, dump
from projections.facts import read_commit, read_fact
from projections.memory import MemoryStore
from projections.postgres import PostgresStore
from projections.sqlite import SqliteStore
from projections.views import VIEWS

SEEDS = st.integers(0, 2**32)
BOUNDED = examples.times(0.4)
FEW = examples.times(0.1)


def dumps(store):
    found = {}
    for view in VIEWS:
        with store.read(view.name) as reader:
            found[view.name] = dump(reader)
    return found


def built(messages, store=None):
    """Views built in one go."""
    store = store or MemoryStore()
    engine = Engine(store, VIEWS)
    engine.open()
    engine.apply(messages)
    engine.save()
    assert [t.broken for t in engine.targets.values() if t.broken] == []
    return store


def lived(messages, store, seed):
    """Views that followed the log: odd batches, redelivery, and crashes between applying and saving."""
    random = Random(seed)
    engine = Engine(store, VIEWS)
    engine.open()
    at = 0
    while at < len(messages):
        size = random.choice((1, 2, 7, 40))
        again = max(0, at - random.choice((0, 0, 5)))
        engine.apply(messages[again : at + size])
        if random.random() < 0.15:  # killed: what was not saved never happened
            engine = Engine(store, VIEWS)
            engine.open()
            at = engine.position
            continue
        if random.random() < 0.7:
            engine.save()
        at += size
    engine.save()
    return store


@pytest.mark.quick
@BOUNDED
@given(seed=SEEDS, steps=st.integers(0, 4000))
def test_a_view_that_followed_the_log_equals_one_built_from_zero(seed, steps):
    messages = History(seed).walk(steps)
    assert dumps(lived(messages, MemoryStore(), seed)) == dumps(built(messages))


@pytest.mark.quick
@BOUNDED
@given(seed=SEEDS, steps=st.integers(0, 3000))
def test_sqlite_and_memory_hold_the_same_bytes(seed, steps, tmp_path_factory):
    messages = History(seed).walk(steps)
    store = SqliteStore(tmp_path_factory.mktemp("views") / "views.db")
    assert dumps(lived(messages, store, seed)) == dumps(built(messages))
    store.close()


@pytest.mark.root
@FEW
@given(seed=SEEDS, steps=st.integers(0, 2000))
@example(seed=1, steps=4000)
def test_postgres_and_memory_hold_the_same_bytes(seed, steps, postgres_schema):
    messages = History(seed).walk(steps)
    with postgres_schema() as url:
        store = PostgresStore(url)
        assert dumps(lived(messages, store, seed)) == dumps(built(messages))
        store.close()


@pytest.mark.quick
def test_every_event_that_a_view_reads_occurs_in_these_histories():
    """Else the tests above would show less than they seem to."""
    routes = {route for view in VIEWS for route in view.routes}
    seen = set()
    for seed in range(200):
        if routes <= seen:
            break
        seen |= {event["type"] for _, data in History(seed).walk(2500) for event in orjson.loads(data)["events"]}
    assert routes - seen == set()
    assert routes - set(EVENTS) == set()


@pytest.mark.quick
@BOUNDED
@given(seed=SEEDS)
def test_views_read_events_with_exactly_the_fields_that_their_classes_have(seed):
    for seq, message in History(seed).walk(2500):
        commit = decode(message, seq)
        raw = read_commit(message)
        for written, event in zip(raw.events, commit.decoded(), strict=True):
            whole = event.model_dump(mode="json", exclude={*ENVELOPE_FIELDS, "originator_topic"})
            assert read_fact(seq, raw, written).data == whole


@pytest.mark.quick
@BOUNDED
@given(seed=SEEDS, steps=st.integers(0, 6000))
def test_the_compat_matrix_equals_the_rules_applied_to_everything(seed, steps):
    history = History(seed)
    store = built(history.walk(steps))
    view = next(v for v in VIEWS if v.name == "compat-matrix")
    nodes = {k[2]: a for k, a in history.aggregates.items() if k[0] is Node and a.liveness is not Liveness.EVICTED}
    for project in ("default", "acme"):
        rows = {}
        for (cls, where, template_id), template in history.aggregates.items():
            if cls is Template and where == project and template.state is not TemplateState.DELETED:
                rows[template_id] = matrix_row(history, project, template, nodes)
        with store.read("compat-matrix") as reader:
            listed = view.list(reader, project, {}, "", 100).items
            summary = view.summary(reader, project)
            assert {id_: {c["node_id"]: c["compat"] for c in row["nodes"]} for id_, row in listed} == rows
            assert {id_: row["overall"] for id_, row in listed} == {id_: overall(row.values()) for id_, row in rows.items()}
            expected = summarise(rows).model_dump()
            assert {name: summary[name] for name in expected} == expected
            for word in ("OK", "STALE", "UNKNOWN", "MISSING"):
                found = [id_ for id_, _ in view.list(reader, project, {"overall": word}, "", 100).items]
                assert found == sorted(id_ for id_, row in rows.items() if overall(row.values()) == word)


def matrix_row(history, project, template, nodes):
    row = {}
    for node_id in NODES:
        node = nodes.get(node_id)
        if node is None:
            continue
        replica = history.aggregates.get((Replica, project, f"{template.id}_{node_id}"))
        online = node.liveness is Liveness.ONLINE
        if replica is not None and replica.state is ReplicaState.READY:
            row[node_id] = judge(replica.bound, node.versions, online, template.compat_policy)
        elif online:
            row[node_id] = Compat.MISSING
    return row


@pytest.mark.quick
def test_the_digest_tells_views_apart():
    history = History(7)
    first = built(history.walk(300))
    second = built(history.messages + history.walk(200))
    with first.read("sandboxes") as one, second.read("sandboxes") as other:
        assert digest(one) != digest(other)
        assert digest(one) == digest(one)


@pytest.mark.quick
def test_a_view_that_cannot_apply_an_event_stops_alone_and_consistent():
    messages = History(3).walk(2500)
    bad = orjson.loads(messages[150][1])
    bad["events"] = [{"type": "sandbox.created", "schema": 1, "version": 1, "data": {}}]
    broken_log = [*messages[:150], (151, orjson.dumps(bad)), *messages[151:]]
    store = MemoryStore()
    engine = Engine(store, VIEWS)
    engine.open()
    for at in range(0, len(broken_log), 50):
        engine.apply(broken_log[at : at + 50])
        engine.save()
    positions = {g.view: g.position for g in store.generations()}
    assert positions["jobs"] == len(broken_log)
    assert positions["sandboxes"] == 150
    assert dumps(store)["sandboxes"] == dumps(built(messages[:150]))["sandboxes"]
