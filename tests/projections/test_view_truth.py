"""What a view shows is what the aggregates themselves say, after any history: two folds of one log, by different code."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples
from support.histories import History

from domain.nodes.node import Node
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job
from domain.templates.replica import Replica, ReplicaState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import Template, TemplateState
from projections.engine import Engine
from projections.memory import MemoryStore
from projections.views import VIEWS

pytestmark = pytest.mark.quick


def node(n):
    storage = {"usage_pct": n.storage_pct, "mode": n.storage.value}
    return {
        "status": n.status,
        "liveness": n.liveness.value,
        "scheduling": n.scheduling.value,
        "versions": n.versions.model_dump(),
        "capacity": n.capacity.model_dump(),
        "roles": list(n.roles),
        "host": n.host,
        "note": n.note,
        "storage": storage,
    }


def storage(n):
    return {"mode": n.storage.value, "usage_pct": n.storage_pct, "writable": n.storage.value in {"healthy", "warn"}}


def job(j):
    return {
        "status": j.status,
        "phase": j.phase.value,
        "progress": j.progress,
        "pull": j.pulled.model_dump(),
        "attempt": j.attempt,
        "targets": list(j.targets),
        "result": j.result,
        "error": None if j.failure is None else j.failure.model_dump(),
    }


def printed(text):
    """As every store can keep it."""
    return None if text is None else text.replace("\0", "\ufffd")


def replica(r):
    return {
        "status": r.status,
        "phase": r.phase,
        "artifact_id": r.artifact_id,
        "guest_image_version": r.bound.guest_image,
        "agent_version": r.bound.agent,
        "last_error": printed(r.last_error),
        "last_error_phase": r.last_error_phase,
    }


def template(t):
    return {"status": t.state.value, "artifact_id": t.artifact_id, "image_digest": t.image_digest, "last_error": printed(t.last_error)}


def artifact(a):
    return {"status": a.state.value, "size_bytes": a.size_bytes, "sha256": a.sha256, "owners": len(a.owners)}


def snapshot(s):
    return {"status": s.state.value, "name": s.name, "last_error": printed(s.last_error)}


def sandbox(s):
    return {
        "state": s.state.value,
        "reason": s.reason,
        "node_id": s.node_id,
        "generation": s.generation,
        "address": s.address,
    }


TRUTHS = (
    ("nodes", Node, node, lambda _: True),
    ("storage", Node, storage, lambda _: True),
    ("jobs", Job, job, lambda _: True),
    ("replicas", Replica, replica, lambda r: r.state is not ReplicaState.REMOVED),
    ("templates", Template, template, lambda t: t.state is not TemplateState.DELETED),
    ("artifacts", Artifact, artifact, lambda a: a.state is not ArtifactState.DELETED),
    ("snapshots", Snapshot, snapshot, lambda s: s.state not in {SnapshotState.DELETED, SnapshotState.GONE}),
    ("sandboxes", Sandbox, sandbox, lambda s: not s.forgotten),
)


def built(messages):
    store = MemoryStore()
    engine = Engine(store, VIEWS)
    engine.open()
    engine.apply(messages)
    engine.save()
    return {view.name: (view, store) for view in VIEWS}


@examples.times(0.4)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 3000))
def test_a_view_shows_what_the_aggregates_are(seed, steps):
    history = History(seed)
    views = built(history.walk(steps))
    for name, cls, truth, shown in TRUTHS:
        view, store = views[name]
        with store.read(name) as reader:
            for (kind, project, identifier), aggregate in history.aggregates.items():
                if kind is cls and shown(aggregate):
                    item, wanted = view.get(reader, project, identifier), truth(aggregate)
                    assert {field: item[field] for field in wanted} == wanted, (name, identifier)


@examples.times(0.2)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 2000))
def test_what_a_silent_node_runs_is_unknown_and_what_is_dead_is_known(seed, steps):
    history = History(seed)
    messages = history.walk(steps)
    view, store = built(messages)["sandboxes"]
    silent = set()
    for _, data in messages:
        commit = orjson.loads(data)
        for event in commit["events"]:
            if event["type"] == "node.went-offline":
                silent.add(commit["id"])
            elif event["type"] in {"node.came-online", "node.evicted"}:
                silent.discard(commit["id"])
    with store.read("sandboxes") as reader:
        for (kind, project, identifier), aggregate in history.aggregates.items():
            if kind is Sandbox and not aggregate.forgotten:
                item = view.get(reader, project, identifier)
                assert item["known"] == (aggregate.state is SandboxState.DEAD or aggregate.node_id not in silent)
