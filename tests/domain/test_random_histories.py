"""Whatever is asked of an aggregate in whatever order: it refuses or records, and its events alone make it again."""

from __future__ import annotations

import functools
import inspect
from datetime import timedelta
from typing import Any, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import examples, gwt, strategies, worlds

from domain.kernel.aggregate import Aggregate, restore_state, take_state
from domain.kernel.command import canonical
from domain.kernel.errors import Refused
from domain.kernel.registry import decode_event
from domain.templates.progress import Phase

pytestmark = pytest.mark.quick

WAITS = st.sampled_from([0, 1, 31, 61, 3600, 8 * 86_400])
NAMED: dict[str, st.SearchStrategy[Any]] = {
    "attempt": st.integers(0, 3),
    "volume_id": st.sampled_from([worlds.disks.VOLUME, worlds.disks.OTHER_VOLUME]),
    "size_mb": st.sampled_from([16, 1024, 2048, 4096]),
    "snapshot": st.sampled_from(["s1", "s2"]),
    "artifact_id": st.sampled_from([worlds.ARTIFACT, "rfs-" + "9" * 24]),
    "command_id": st.sampled_from(["pause", "resume", "rollback", "snap", "stop"]),
    "deadline": st.just(worlds.LATER),
    "error": st.sampled_from([None, "", "it broke", "x" * 5000, worlds.FAILURE]),
    "facts": st.just(worlds.DIGEST),
    "fingerprint": st.sampled_from([worlds.PRINT, "0" * 64]),
    "first": st.integers(0, 3),
    "from_phase": st.sampled_from(list(Phase)),
    "generation": st.integers(0, 3),
    "job_id": st.sampled_from([worlds.JOB, worlds.OTHER_JOB]),
    "lease_s": st.sampled_from([0, 60, 900]),
    "node_id": st.sampled_from(["n1", "n2"]),
    "owner": st.sampled_from([worlds.OWNER, "default/" + worlds.SNAPSHOT]),
    "phase": st.sampled_from(list(Phase)),
    "progress": st.none() | st.integers(0, 100),
    "ready": st.integers(0, 2),
    "sandbox_id": st.sampled_from([worlds.SANDBOX, worlds.OTHER_SANDBOX]),
    "seconds": st.sampled_from([None, -1, 0, 60, 0.5]),
    "snapshot_id": st.sampled_from([worlds.SNAPSHOT, "snap-" + "4" * 24]),
    "snapshot_origin": st.sampled_from([worlds.SANDBOX, worlds.OTHER_SANDBOX]),
    "spec": st.sampled_from([worlds.SPEC, worlds.SPEC.model_copy(update={"disk_mb": 2048})]),
    "stop_after_s": st.sampled_from([None, 0, 60]),
    "template_id": st.sampled_from([worlds.TEMPLATE, worlds.OTHER_TEMPLATE]),
    "total": st.integers(2, 3),
    "ttl_generation": st.integers(0, 4),
    "users": st.sampled_from([(), (worlds.SANDBOX,)]),
    "versions": st.sampled_from([worlds.V1, worlds.V2, worlds.UNBOUND.args[1]]),
}
"""Small pools for what must match for anything to happen; everything else follows from its annotation."""


@functools.cache
def _calls(cls: type[Aggregate]) -> st.SearchStrategy[gwt.Step]:
    """Any public decision with any arguments."""
    return st.one_of([_call(name, method) for name, method in inspect.getmembers(cls, inspect.isfunction) if _decides(cls, name, method)])


def _decides(cls: type[Aggregate], name: str, method: Any) -> bool:
    return name in cls.__dict__ and not name.startswith("_") and list(inspect.signature(method).parameters)[1:2] == ["at"]


def _call(name: str, method: Any) -> st.SearchStrategy[gwt.Step]:
    hints = get_type_hints(method, include_extras=True)
    drawn = {
        parameter: NAMED[parameter] if parameter in NAMED else strategies.of(hints[parameter])
        for parameter in list(inspect.signature(method).parameters)[2:]
    }
    return st.tuples(st.fixed_dictionaries(drawn), WAITS).map(lambda made: gwt.Step(name, (), made[0], made[1]))


@pytest.mark.parametrize("topic", list(worlds.WORLDS))
@examples.times(1.5)
@given(data=st.data())
def test_any_history_can_be_replayed_and_snapshotted(topic: str, data: st.DataObject) -> None:
    aggregate: Any = worlds.WORLDS[topic].create()
    at = aggregate.modified_on
    for step in data.draw(st.lists(_calls(type(aggregate)), max_size=25)):
        at += timedelta(seconds=step.after)
        before = take_state(aggregate), aggregate.version
        try:
            gwt.call(aggregate, step, at)
        except Refused:
            assert (take_state(aggregate), aggregate.version) == before
    _survives_replay(aggregate)
    _survives_a_snapshot(aggregate)


def _survives_replay(aggregate: Any) -> None:
    again: Any = None
    for event in aggregate.pending_events:
        stored = orjson.loads(canonical(event.data()))
        decoded = decode_event(
            aggregate.id, aggregate.TOPIC, event.timestamp, event.TOPIC, event.class_version, event.originator_version, stored
        )
        again = decoded.mutate(again)
    assert take_state(again) == take_state(aggregate)
    assert again.version == aggregate.version


def _survives_a_snapshot(aggregate: Any) -> None:
    state = orjson.loads(canonical(take_state(aggregate)))
    again = restore_state(type(aggregate), aggregate.id, aggregate.version, state)
    assert take_state(again) == take_state(aggregate)
    assert again == restore_state(type(aggregate), aggregate.id, aggregate.version, take_state(aggregate))


def test_a_snapshot_of_another_shape_is_refused() -> None:
    state = take_state(worlds.sandbox())
    del state["state"]
    with pytest.raises(ValueError, match="state"):
        restore_state(type(worlds.sandbox()), worlds.SANDBOX, 1, state)
