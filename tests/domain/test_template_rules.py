"""Templates, aliases, artifacts, replicas, jobs, snapshots: the rules that span more than one cell of a table."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support import worlds
from support.gwt import T0, did, given
from support.worlds import (
    ARTIFACT,
    BUILT,
    FAILURE,
    JOB,
    OTHER_JOB,
    OTHER_SANDBOX,
    OTHER_TEMPLATE,
    OWNED,
    PRINT,
    SANDBOX,
    SPEC,
    TEMPLATE,
    V1,
)

from domain.kernel.errors import Invalid, Refused
from domain.nodes.orders import Versions
from domain.templates.alias import Alias, check_alias
from domain.templates.artifact import TTL, Artifact, ArtifactState
from domain.templates.job import Job, JobState, Operation, Phase, PullProgress, next_attempt
from domain.templates.progress import PROGRESS
from domain.templates.replica import ReplicaState
from domain.templates.template import TemplateState

pytestmark = pytest.mark.quick

READY = did("settle", JOB, 3, 0, 3)
REDO = did("begin_job", OTHER_JOB, "ALL")


# ---------------------------------------------------------------------------------------------------------- templates


def test_no_replicas_at_all_is_failed() -> None:
    given(worlds.template).when("settle", JOB, 0, 0, 0).then("template.settled", state=TemplateState.FAILED, active_job=None)


def test_a_ready_template_has_no_error() -> None:
    partly = given(worlds.template).when("settle", JOB, 2, 1, 3, "n3: no space").then("template.settled", last_error="n3: no space")
    partly.when("replicas_changed", 3, 0, 3, "old news").then("template.settled", last_error=None, state=TemplateState.READY)


def test_one_job_at_a_time() -> None:
    given(worlds.template).when("begin_job", OTHER_JOB).then_refused("template.attempt-in-progress", job_id=JOB)
    redone = given(worlds.template, READY).when("begin_job", OTHER_JOB, "ALL").then("template.job-begun", active_job=OTHER_JOB)
    redone.when("settle", JOB, 0, 3, 3, "late").then_nothing()
    redone.when("begin_job", JOB).then_refused("template.attempt-in-progress")


def test_a_redo_keeps_the_status_until_it_settles() -> None:
    """reference/cubesandbox.md §4.1."""
    redoing = given(worlds.template, READY, REDO)
    assert redoing.aggregate.state is TemplateState.READY
    redoing.when("replicas_changed", 2, 0, 3).then_nothing()
    redoing.when("fail", OTHER_JOB, FAILURE).then("template.failed", state=TemplateState.READY, last_error="it broke")


def test_a_first_job_that_fails_early_fails_the_template() -> None:
    given(worlds.template).when("fail", JOB, "no such image").then("template.failed", state=TemplateState.FAILED, active_job=None)


def test_a_delete_waits_for_the_job_unless_it_is_forced() -> None:
    """reference/cubesandbox.md §4.4, scenarios 13 and 14."""
    given(worlds.template).when("begin_delete", "c1").then_refused("template.attempt-in-progress")
    given(worlds.template, READY, REDO).when("begin_delete", "c1").then_refused("template.attempt-in-progress", job_id=OTHER_JOB)
    forced = given(worlds.template, READY, REDO, did("begin_delete", "c1", force=True)).when("judge_delete", "c1")
    forced.then("template.delete-requested", state=TemplateState.DELETING, active_job=None)
    assert forced.events[0].failed_job == OTHER_JOB
    given(worlds.template, READY, *worlds.DELETING, did("finish_delete")).when("begin_delete", "c2").then_refused("template.not-found")


def test_a_template_in_use_is_not_deleted_not_even_by_force() -> None:
    given(worlds.template, READY).when("begin_delete", "c1", (SANDBOX,), True).then_refused("template.in-use", sandboxes=[SANDBOX])
    begun = given(worlds.template, READY, REDO, did("begin_delete", "c1", force=True))
    refused = begun.when("judge_delete", "c1", (SANDBOX,)).then(
        "template.delete-refused", state=TemplateState.READY, active_job=OTHER_JOB, pending_deletes={}
    )
    assert refused.aggregate.delete_refusal("c1").code == "template.in-use"
    assert refused.aggregate.delete_refusal("c2") is None
    refused.when("begin_delete", "c2", force=True).then("template.delete-begun")


def test_between_the_beginning_of_a_delete_and_its_judgement_nothing_starts_from_a_template() -> None:
    begun = given(worlds.template, READY, worlds.BEGUN)
    begun.when("require_startable").then_refused("template.deleting")
    begun.when("begin_job", OTHER_JOB).then_refused("template.attempt-in-progress")
    begun.when("judge_delete", "c1", (SANDBOX,)).then("template.delete-refused").when("require_startable").then_nothing()
    given(worlds.template, READY, *worlds.DELETING).when("require_startable").then_refused("template.not-found")


def test_deletes_that_are_begun_together_are_judged_together_and_only_for_the_first_of_them() -> None:
    both = given(worlds.template, READY, worlds.BEGUN, did("begin_delete", "c2"))
    both.when("judge_delete", "c2").then_nothing()
    refused = both.when("judge_delete", "c1", (SANDBOX,)).then("template.delete-refused", pending_deletes={})
    assert set(refused.aggregate.refused_deletes) == {"c1", "c2"}


def test_a_delete_that_failed_can_be_tried_again() -> None:
    failed = given(worlds.template, READY, *worlds.DELETING).when("fail_delete", "n1: busy").then("template.delete-failed")
    failed.when("begin_delete", "c2").then("template.delete-begun")


def test_the_wished_alias_is_held_once_it_is_claimed_and_gone_once_it_is_lost() -> None:
    settled = given(worlds.template, READY)
    assert (settled.aggregate.alias, settled.aggregate.alias_held) == ("base", False)
    held = settled.when("alias_claimed", "base").then("template.alias-claimed", alias_held=True)
    held.when("alias_lost", "other").then_nothing()
    held.when("alias_lost", "base").then("template.alias-lost", alias=None, alias_held=False)


# ------------------------------------------------------------------------------------------------------------ aliases


def test_an_alias_is_taken_over_and_names_its_former_holder() -> None:
    claimed = Alias.create("base", T0, OTHER_TEMPLATE)
    taken = given(claimed).when("claim", TEMPLATE)
    taken.then("alias.claimed", template_id=TEMPLATE)
    assert (taken.answer, taken.events[0].previous) == (OTHER_TEMPLATE, OTHER_TEMPLATE)


def test_only_its_holder_gives_an_alias_up() -> None:
    held = given(Alias.create("base", T0, OTHER_TEMPLATE))
    held.when("release", TEMPLATE).then_nothing()
    held.when("release", OTHER_TEMPLATE).then("alias.released", template_id=None)


@pytest.mark.parametrize("name", ["tpl-1", "tpl-", "snap-" + "0" * 24, "", "-a", "A", "a_b", "a" * 64, "a.b"])
def test_what_looks_like_an_id_or_is_no_name_is_no_alias(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_alias(name)
    assert list(caught.value.details) == ["alias"]
    with pytest.raises(Invalid):
        Alias.create(name, T0)


# ---------------------------------------------------------------------------------------------------------- artifacts


def test_one_specification_is_built_once() -> None:
    """reference/cubesandbox.md scenario 3."""
    building = given(worlds.artifact)
    building.when("claim", PRINT, SPEC, JOB, "default").then_nothing()
    refusal = building.when("claim", PRINT, SPEC, OTHER_JOB, "other").then_refused("artifact.building", job=JOB)
    assert refusal.retryable
    given(worlds.artifact, BUILT).when("claim", PRINT, SPEC, OTHER_JOB, "other").then_nothing()


def test_what_another_jobs_build_says_is_no_news() -> None:
    claimed = given(worlds.artifact, did("expire_build", JOB), did("claim", PRINT, SPEC, OTHER_JOB, "default"))
    claimed.when("built", JOB, "e" * 64, 1, worlds.DIGEST, {}, "n1").then_nothing()
    claimed.when("fail_build", JOB, "late").then_nothing()
    assert claimed.aggregate.state is ArtifactState.BUILDING


def test_another_specification_is_another_artifact() -> None:
    other = SPEC.model_copy(update={"disk_mb": 2048})
    given(worlds.artifact).when("claim", PRINT, other, JOB, "default").then_refused("artifact.fingerprint-mismatch")
    with pytest.raises(Refused, match="another specification"):
        Artifact.create(ARTIFACT, T0, "0" * 64, SPEC, JOB, "default")


def test_the_last_owner_leaves_and_the_artifact_may_go() -> None:
    """reference/cubesandbox.md scenario 11."""
    shared = given(worlds.artifact, BUILT, OWNED, did("add_owner", "default/" + OTHER_TEMPLATE))
    shared.when("request_cleanup").then_refused("artifact.in-use", owners=["default/" + TEMPLATE, "default/" + OTHER_TEMPLATE])
    one = shared.when("drop_owner", "default/" + TEMPLATE).then("artifact.owner-dropped")
    assert not one.aggregate.collectable(one.at + timedelta(days=365))
    none = one.when("drop_owner", "default/" + OTHER_TEMPLATE).then("artifact.owner-dropped")
    assert none.aggregate.gc_deadline == none.at + TTL
    assert not none.aggregate.collectable(none.at + timedelta(days=6))
    assert none.aggregate.collectable(none.at + timedelta(days=7))
    none.when("request_cleanup").then("artifact.cleanup-requested", state=ArtifactState.CLEANUP_PENDING, ref=None)


def test_a_build_that_claims_it_during_the_clean_up_survives_it() -> None:
    """reference/cubesandbox.md scenario 12."""
    cleaning = given(worlds.artifact, BUILT, did("request_cleanup"))
    rebuilt = given(cleaning.aggregate, did("claim", PRINT, SPEC, OTHER_JOB, "default"))
    rebuilt.when("finish_cleanup", 1).then_nothing()
    later = given(rebuilt.aggregate, did("fail_build", OTHER_JOB, "x"), did("request_cleanup"))
    later.when("finish_cleanup", 1).then_nothing()
    later.when("finish_cleanup", 2).then("artifact.deleted", state=ArtifactState.DELETED)


def test_a_ready_artifact_says_which_bytes_it_is() -> None:
    assert given(worlds.artifact).aggregate.ref is None
    assert given(worlds.artifact, BUILT).aggregate.ref == worlds.REF
    lost = given(worlds.artifact, BUILT).when("lost").then("artifact.failed", state=ArtifactState.FAILED, ref=None)
    lost.when("claim", PRINT, SPEC, OTHER_JOB, "default").then("artifact.claimed", generation=2)


def test_bytes_that_arrive_during_the_clean_up_are_known() -> None:
    cleaning = given(worlds.artifact, BUILT, did("request_cleanup"))
    cleaning.when("placed", "n2").then("artifact.placed")
    assert list(cleaning.aggregate.placements) == ["n2"]


# ----------------------------------------------------------------------------------------------------------- replicas


def test_a_redo_takes_the_replica_out_of_scheduling_at_once() -> None:
    ready = given(worlds.replica, worlds.FETCH, worlds.FETCHED, worlds.PREPARE, did("ready", JOB, V1, "sim"))
    assert ready.aggregate.schedulable
    redone = ready.when("redo", OTHER_JOB, ARTIFACT, "SNAPSHOTTING").then("replica.redone", state=ReplicaState.DISTRIBUTED)
    assert (redone.aggregate.schedulable, redone.aggregate.status) == (False, "PENDING")
    redone.when("ready", JOB, V1).then_nothing()


def test_a_failed_redo_keeps_the_old_binding() -> None:
    """reference/cubesandbox.md appendix B."""
    ready = (worlds.FETCH, worlds.FETCHED, worlds.PREPARE, did("ready", JOB, V1, "sim"))
    redoing = given(worlds.replica, *ready, did("redo", OTHER_JOB, ARTIFACT, "SNAPSHOTTING"), did("begin_prepare", OTHER_JOB))
    failed = redoing.when("fail", OTHER_JOB, "SNAPSHOTTING", FAILURE, True)
    failed.then("replica.failed", bound=V1, last_error="it broke", last_error_phase="SNAPSHOTTING", cleanup_required=True)


def test_a_redo_fetches_again_what_the_node_does_not_have() -> None:
    fetching = given(worlds.replica, worlds.FETCH, did("fail", JOB, "DISTRIBUTING", "no route", True))
    fetching.when("redo", OTHER_JOB, ARTIFACT, "SNAPSHOTTING").then("replica.redone", state=ReplicaState.DISTRIBUTING)
    other = given(worlds.replica, worlds.FETCH, worlds.FETCHED, worlds.PREPARE, worlds.BROKEN)
    other.when("redo", OTHER_JOB, "rfs-" + "9" * 24, "SNAPSHOTTING").then("replica.redone", state=ReplicaState.DISTRIBUTING, has_file=False)


def test_a_stale_order_does_not_revive_a_failed_replica() -> None:
    failed = given(worlds.replica, worlds.FETCH, did("fail", JOB, "DISTRIBUTING", "x", True))
    failed.when("begin_distribute", JOB, 1).then_nothing()
    failed.when("begin_distribute", JOB, 2).then("replica.distributing", attempt=2)


def test_adoption_binds_only_what_is_unknown() -> None:
    """reference/cubesandbox.md §6: READY and UNKNOWN, on a node that reports guest image and agent."""
    path = (worlds.FETCH, worlds.FETCHED, worlds.PREPARE)
    unknown = given(worlds.replica, *path, did("ready", JOB, Versions(guest_image="g1", kernel="k0"), "sim"))
    assert not unknown.when("adopt_baseline", Versions(guest_image="g1")).answer
    assert not unknown.when("adopt_baseline", Versions(guest_image="g2", agent="a1")).answer, "STALE is not adopted"
    adopted = unknown.when("adopt_baseline", Versions(guest_image="g1", agent="a1"))
    assert adopted.answer
    adopted.then("replica.baseline-adopted", bound=Versions(guest_image="g1", agent="a1", kernel="k0"))
    given(worlds.replica, *path, did("ready", JOB, V1)).when("adopt_baseline", V1).then_nothing()


# --------------------------------------------------------------------------------------------------------------- jobs


def test_attempts_are_numbered() -> None:
    """reference/cubesandbox.md §2.2."""
    assert [next_attempt(latest) for latest in (None, 0, 1, 2, 7)] == [1, 2, 2, 3, 8]


@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_climbs_from_its_first_phase_to_100(operation: Operation) -> None:
    figures = list(PROGRESS[operation].values())
    assert figures == sorted(figures)
    assert len(set(figures)) == len(figures)
    assert (list(PROGRESS[operation])[-1], figures[-1]) == (Phase.READY, 100)
    job = given(worlds.job(operation.value), worlds.START)
    seen = [job.aggregate.progress]
    for phase in list(PROGRESS[operation])[:-1]:
        job = given(job.aggregate, did("advance", phase))
        seen.append(job.aggregate.progress)
    assert seen == sorted(seen)
    done = job.when("succeed").then("job.succeeded", progress=100, state=JobState.READY)
    ends_registering = {Operation.COMMIT, Operation.SNAPSHOT_CREATE}
    assert done.aggregate.phase is (Phase.REGISTERING if operation in ends_registering else Phase.READY)


def test_progress_never_goes_back() -> None:
    built = given(worlds.job, worlds.START, did("advance", "BUILDING_EXT4", 50))
    built.when("advance", "UNPACKING").then_nothing()
    built.when("advance", "BUILDING_EXT4", 40).then_nothing()
    built.when("advance", "BUILDING_EXT4", 55).then("job.advanced", progress=55)
    built.when("advance", "ROLLBACK_DRIVING").then_nothing()


def test_a_redo_begins_where_it_resumes() -> None:
    job = Job.create(OTHER_JOB, T0, "REDO", "template", TEMPLATE, {"mode": "ALL"}, 2, JOB, ("n1",), "SNAPSHOTTING")
    assert (job.phase, job.attempt, job.retry_of, job.resume_phase) == (Phase.SNAPSHOTTING, 2, JOB, Phase.SNAPSHOTTING)
    given(job, worlds.START).when("advance", "DISTRIBUTING").then_nothing()


def test_a_pull_is_told_in_steps_of_five_points() -> None:
    pulling = given(worlds.job, worlds.START)
    told = 0
    for done in range(1001):
        pull = PullProgress(bytes=done * 1000, total_bytes=1_000_000, layers=done // 500, total_layers=2, bytes_per_s=5)
        told += bool(pulling.when("pull", pull).events)
    assert told == 20
    assert pulling.aggregate.pulled.finished
    pulling.when("pull", PullProgress(bytes=10, total_bytes=1_000_000)).then_nothing()


def test_a_job_without_a_sign_of_life_expires() -> None:
    running = given(worlds.job, worlds.START)
    running.when("expire", after=899).then_nothing()
    renewed = running.when("renew", T0 + timedelta(hours=1)).then("job.lease-renewed")
    renewed.when("renew", T0 + timedelta(minutes=5)).then_nothing()
    renewed.when("expire", after=901).then_nothing()
    expired = renewed.when("expire", after=3600).then("job.failed", state=JobState.FAILED)
    assert (expired.aggregate.failure.code, expired.aggregate.phase) == ("job.expired", Phase.PULLING)
    given(worlds.job).when("expire", after=900).then("job.failed")


def test_an_ended_job_stays_ended() -> None:
    """reference/cubesandbox.md §1.5."""
    failed = given(worlds.job, worlds.START, did("fail", "DISTRIBUTING", FAILURE))
    failed.when("succeed").then_nothing()
    failed.when("start", "another").then_nothing()
    assert (failed.aggregate.phase, failed.aggregate.progress) == (Phase.DISTRIBUTING, 100)


def test_what_a_job_learns_adds_up() -> None:
    noted = given(worlds.job, worlds.START, did("note", digest="d", config={"Cmd": ["sh"]})).when("note", digest="d", builder="n1")
    noted.then("job.noted", facts={"digest": "d", "config": {"Cmd": ["sh"]}, "builder": "n1"})
    assert noted.events[0].facts == {"builder": "n1"}


# ---------------------------------------------------------------------------------------------------------- snapshots


def test_a_tombstone_waits_for_the_last_sandbox() -> None:
    """reference/cubesandbox.md §5.3 and scenario 21."""
    used = given(worlds.snapshot, worlds.TAKEN, did("attach", SANDBOX, "n1", 0), did("attach", OTHER_SANDBOX, "n1", 0))
    hidden = used.when("request_delete").then("snapshot.deleted", removable=False)
    hidden.when("attach", "sb-" + "c" * 20, "n1").then_refused("snapshot.not-found")
    hidden.when("finish_delete").then_refused("snapshot.in-use", sandboxes=[SANDBOX, OTHER_SANDBOX])
    one = hidden.when("detach", SANDBOX, "sandbox destroyed").then("snapshot.detached", removable=False)
    last = one.when("detach", OTHER_SANDBOX, "switched runtime ref").then("snapshot.detached", removable=True)
    last.when("finish_delete").then("snapshot.removed")


def test_a_runtime_ref_is_one_per_sandbox_and_never_goes_back() -> None:
    """reference/cubesandbox.md §5.5."""
    attached = given(worlds.snapshot, worlds.TAKEN).when("attach", SANDBOX, "n1", 2).then("snapshot.attached")
    attached.when("attach", SANDBOX, "n1", 1).then_nothing()
    moved = attached.when("attach", SANDBOX, "n1", 3).then("snapshot.attached")
    assert [(ref.generation, ref.node_id) for ref in moved.aggregate.refs.values()] == [(3, "n1")]
    moved.when("detach", OTHER_SANDBOX).then_nothing()


def test_a_snapshot_being_made_can_be_neither_used_nor_deleted() -> None:
    given(worlds.snapshot).when("attach", SANDBOX, "n1").then_refused("snapshot.illegal-state", state="CREATING")
    given(worlds.snapshot).when("request_delete").then_refused("snapshot.illegal-state")


def test_a_failed_snapshot_says_why_and_can_be_deleted() -> None:
    """reference/cubesandbox.md scenario 18."""
    failed = given(worlds.snapshot).when("fail", JOB, FAILURE).then("snapshot.failed", last_error="it broke")
    failed.when("ready", JOB, 1).then_nothing()
    failed.when("request_delete").then("snapshot.deleted", removable=True)
    given(worlds.snapshot).when("fail", OTHER_JOB, FAILURE).then_nothing()
