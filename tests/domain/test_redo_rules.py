"""Redo and targets: reference/cubesandbox.md §3.4, §4.1, scenarios 9 and 10."""

from __future__ import annotations

import pytest

from domain.kernel.errors import Refused
from domain.templates.progress import Phase
from domain.templates.redo import ReplicaView, redo_targets, resume_phase
from domain.templates.targets import select_targets

pytestmark = pytest.mark.quick

A = ReplicaView(node_id="a", state="READY")
B = ReplicaView(node_id="b", state="FAILED", last_error_phase="SNAPSHOTTING")
C = ReplicaView(node_id="c", state="READY", cleanup_required=True)
HEALTHY = ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("mode", "scope", "expected"),
    [
        ("ALL", (), ("a", "b", "c", "d")),
        ("NODES", ("a",), ("a",)),
        ("FAILED_ONLY", (), ("b", "c")),
        ("FAILED_NODES", ("a", "b"), ("b",)),
        ("FAILED_NODES", ("c",), ("c",)),
    ],
)
def test_each_mode_chooses_its_nodes(mode: str, scope: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert redo_targets(mode, scope, [A, B, C], HEALTHY) == expected


def test_failed_modes_refuse_when_nothing_failed() -> None:
    for mode, scope, replicas in (("FAILED_NODES", ("a",), [A, B, C]), ("FAILED_ONLY", (), [A]), ("FAILED_ONLY", (), [])):
        with pytest.raises(Refused) as caught:
            redo_targets(mode, scope, replicas, HEALTHY)
        assert caught.value.code == "template.no-failed-replicas"


def test_failed_replicas_on_unhealthy_nodes_are_left_for_later() -> None:
    assert redo_targets("FAILED_ONLY", (), [B, C], ["b", "a"]) == ("b",)
    with pytest.raises(Refused, match="has failed"):
        redo_targets("FAILED_ONLY", (), [B], ["a"])


@pytest.mark.parametrize("mode", ["NODES", "FAILED_NODES"])
def test_a_scope_is_taken_whole_or_not_at_all(mode: str) -> None:
    with pytest.raises(Refused, match="x, z") as caught:
        redo_targets(mode, ("z", "a", "x"), [A, B, C], HEALTHY)
    assert (caught.value.code, caught.value.details) == ("node.not-found", {"nodes": ["x", "z"]})


def test_no_scope_means_every_healthy_node() -> None:
    assert select_targets((), {"n2", "n1"}) == ("n1", "n2")
    assert select_targets(("n2", "n2"), {"n2", "n1"}) == ("n2",)
    with pytest.raises(Refused) as caught:
        select_targets((), [])
    assert caught.value.code == "template.no-nodes"


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("UNPACKING", Phase.BUILDING_EXT4),
        ("BUILDING_EXT4", Phase.BUILDING_EXT4),
        ("GENERATING_JSON", Phase.BUILDING_EXT4),
        ("DISTRIBUTING", Phase.DISTRIBUTING),
        ("CREATING_TEMPLATE", Phase.SNAPSHOTTING),
        ("SNAPSHOTTING", Phase.SNAPSHOTTING),
        ("REGISTERING", Phase.SNAPSHOTTING),
    ],
)
def test_a_failed_attempt_is_taken_up_where_it_ended(phase: str, expected: Phase) -> None:
    assert resume_phase(phase, "FAILED", [A, B]) is expected


def test_after_a_good_attempt_the_first_broken_replica_decides() -> None:
    fetching = ReplicaView(node_id="0", state="FAILED", last_error_phase="DISTRIBUTING")
    assert resume_phase("READY", "READY", [A, B]) is Phase.SNAPSHOTTING
    assert resume_phase("READY", "READY", [A, B, fetching]) is Phase.DISTRIBUTING
    assert resume_phase("READY", "READY", [A, B, fetching.model_copy(update={"node_id": "z"})]) is Phase.SNAPSHOTTING
    assert resume_phase("READY", "READY", [A]) is Phase.SNAPSHOTTING


def test_an_attempt_that_never_got_the_image_cannot_be_redone() -> None:
    with pytest.raises(Refused) as caught:
        resume_phase("PULLING", "FAILED", [])
    assert caught.value.code == "template.not-pulled"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_an_attempt_at_work_is_not_redone(state: str) -> None:
    with pytest.raises(Refused) as caught:
        resume_phase("DISTRIBUTING", state, [])
    assert (caught.value.code, caught.value.retryable) == ("template.attempt-in-progress", True)
