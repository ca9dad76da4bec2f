"""Sandboxes: one run, one operation at a time, generations that only grow, and an end that is never rewritten."""

from __future__ import annotations

import pytest
from support import worlds
from support.gwt import did, given
from support.worlds import FAILURE, JOB, LATER, OTHER_SANDBOX, PAUSE, PAUSED, RESUME, ROLLBACK, SANDBOX, SNAP, SNAPSHOT, STARTED

from domain.nodes.orders import PortStatus
from domain.sandboxes.events import SandboxStopRequested
from domain.sandboxes.states import Exit, SandboxState

pytestmark = pytest.mark.quick


def test_it_starts_with_what_the_node_says() -> None:
    ports = (PortStatus(port=80, address="10.0.0.2:80", status="listening"),)
    known = given(worlds.sandbox).when("mark_running", 1, "sim", "10.0.0.2", ports, 0).then("sandbox.started", driver="sim", ports=ports)
    assert known.aggregate.started_at == known.at


def test_a_stop_during_creation_stands_when_the_node_says_that_it_runs() -> None:
    """reference/miren-sandbox.md scenario 15."""
    stopped = given(worlds.sandbox, did("request_stop", "stop"))
    stopped.when("mark_running", 1, "sim").then_nothing()
    assert stopped.aggregate.state is SandboxState.STOPPED


def test_a_creation_that_was_stopped_and_undone_is_dead_for_the_stops_reason() -> None:
    stopped = given(worlds.sandbox, did("request_delete", "delete"))
    stopped.when("fail_start", 1, "startup_failed", FAILURE).then("sandbox.start-failed", reason="user_delete", state=SandboxState.DEAD)


def test_what_an_older_attempt_says_is_no_news() -> None:
    second = given(worlds.sandbox, did("starting", 2))
    second.when("mark_running", 1, "sim").then_nothing()
    second.when("fail_start", 1, "startup_failed", FAILURE).then_nothing()
    second.when("mark_running", 2, "sim").then("sandbox.started", attempt=2)


def test_an_exit_before_it_ran_is_not_lost() -> None:
    """reference/miren-sandbox.md §1.7: PENDING to STOPPED, so that a late "it runs" cannot win."""
    ended = given(worlds.sandbox).when("exited", 0, 0).then("sandbox.exited", state=SandboxState.STOPPED)
    assert ended.aggregate.exit == Exit(code=0, at=ended.at)
    ended.when("mark_running", 1, "sim").then_nothing()


def test_the_first_exit_stands() -> None:
    ended = given(worlds.sandbox, STARTED).when("exited", 0, 0, "oom").then("sandbox.exited", reason="oom")
    ended.when("exited", 0, 137, "killed").then_nothing()
    dead = ended.when("destroyed", 137).then("sandbox.destroyed", reason="oom", state=SandboxState.DEAD)
    assert dead.aggregate.exit.code == 0
    dead.when("destroyed", 1).then_nothing()


def test_a_machine_that_is_gone_without_anybody_asking_was_lost() -> None:
    given(worlds.sandbox, STARTED).when("exited", 0, None, "lost").then("sandbox.exited", reason="node_lost")
    given(worlds.sandbox, STARTED).when("destroyed").then("sandbox.destroyed", reason="node_lost", exit=None)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("request_resume", ("c2", LATER)),
        ("request_rollback", ("c2", SNAPSHOT, SANDBOX, JOB, LATER)),
        ("begin_snapshot", ("c2", SNAPSHOT, LATER)),
        ("request_pause", ("c2", LATER)),
    ],
)
def test_a_second_operation_is_refused_while_one_is_in_progress(method: str, args: tuple[object, ...]) -> None:
    refusal = given(worlds.sandbox, STARTED, PAUSE).when(method, *args).then_refused("sandbox.illegal-state", operation="pause")
    assert refusal.retryable


def test_a_stop_ends_the_operation_in_progress() -> None:
    stopped = given(worlds.sandbox, STARTED, ROLLBACK).when("request_stop", "stop", 30).then("sandbox.stop-requested", operation=None)
    assert stopped.aggregate.grace_s == 30
    stopped.when("rolled_back", 1).then_nothing()


def test_a_delete_cuts_a_gentle_stop_short_and_keeps_its_reason() -> None:
    stopped = given(worlds.sandbox, STARTED, did("request_stop", "stop", 60))
    stopped.when("request_delete", "delete").then("sandbox.delete-requested", deleting=True, grace_s=0, reason="user_stop")


def test_an_operation_fails_and_the_sandbox_is_as_it_was() -> None:
    failed = given(worlds.sandbox, STARTED, PAUSE).when("operation_failed", "pause", FAILURE)
    failed.then("sandbox.operation-failed", state=SandboxState.RUNNING, operation=None)


def test_an_operation_expires_at_its_deadline_and_not_before() -> None:
    busy = given(worlds.sandbox, STARTED, PAUSE)
    busy.when("operation_expired", "pause", after=60).then_nothing()
    busy.when("operation_expired", "another", after=7200).then_nothing()
    busy.when("operation_expired", "pause", after=7200).then("sandbox.operation-expired", operation=None)


def test_a_late_answer_is_still_the_truth_until_the_next_operation_begins() -> None:
    given(worlds.sandbox, STARTED, PAUSE, did("operation_expired", "pause", after=7200)).when("paused", "pause").then(
        "sandbox.paused", state=SandboxState.PAUSED, expired=None
    )
    given(worlds.sandbox, STARTED, PAUSE, did("operation_expired", "pause", after=7200), SNAP).when("paused", "pause").then_nothing()


def test_generations_only_ever_grow() -> None:
    """reference/cubesandbox.md §5.4, scenario 19: a failed rollback's number is used up too."""
    first = given(worlds.sandbox, STARTED).when("request_rollback", "r1", SNAPSHOT, SANDBOX, JOB, LATER)
    assert first.answer == 1
    failed = first.then("sandbox.operation-begun").when("rollback_failed", 1, FAILURE).then("sandbox.rollback-failed", generation=0)
    second = failed.when("request_rollback", "r2", SNAPSHOT, SANDBOX, JOB, LATER)
    assert second.answer == 2
    done = second.then("sandbox.operation-begun").when("rolled_back", 2, "10.0.0.3").then("sandbox.rolled-back", generation=2)
    assert (done.aggregate.snapshot_id, done.aggregate.address) == (SNAPSHOT, "10.0.0.3")
    done.when("rolled_back", 1).then_nothing()
    assert done.when("request_rollback", "r3", SNAPSHOT, SANDBOX, JOB, LATER).answer == 3


def test_other_operations_do_not_reset_the_generation() -> None:
    past = (STARTED, ROLLBACK, did("rolled_back", 1), SNAP, did("end_snapshot", SNAPSHOT, True), PAUSE, PAUSED)
    assert given(worlds.sandbox, *past).when("request_rollback", "r2", SNAPSHOT, SANDBOX, JOB, LATER).answer == 2


def test_a_repeated_rollback_request_gets_the_same_generation() -> None:
    asked = given(worlds.sandbox, STARTED, ROLLBACK)
    again = asked.when("request_rollback", "rollback", SNAPSHOT, SANDBOX, JOB, LATER)
    again.then_nothing()
    assert again.answer == 1


def test_a_clone_cannot_go_back_to_its_parents_snapshot() -> None:
    asked = given(worlds.sandbox, STARTED).when("request_rollback", "r", SNAPSHOT, OTHER_SANDBOX, JOB, LATER)
    asked.then_refused("snapshot.foreign", origin=OTHER_SANDBOX)


def test_a_rollback_that_destroyed_the_machine_ends_the_sandbox() -> None:
    broken = given(worlds.sandbox, STARTED, ROLLBACK).when("rollback_failed", 1, FAILURE, True)
    broken.then("sandbox.rollback-failed", state=SandboxState.STOPPED, reason="rollback_failed", failure=FAILURE)


def test_a_rollback_that_touched_nothing_leaves_a_paused_sandbox_paused() -> None:
    given(worlds.sandbox, STARTED, PAUSE, PAUSED, ROLLBACK).when("rollback_failed", 1, FAILURE).then(
        "sandbox.rollback-failed", state=SandboxState.PAUSED, failure=None
    )


def test_the_exit_of_a_machine_that_a_rollback_replaces_is_no_news() -> None:
    given(worlds.sandbox, STARTED, ROLLBACK).when("exited", 0, 137).then_nothing()
    given(worlds.sandbox, STARTED, ROLLBACK, did("rolled_back", 1)).when("exited", 0, 137).then_nothing()
    given(worlds.sandbox, STARTED, ROLLBACK, did("rolled_back", 1)).when("exited", 1, 1).then("sandbox.exited")


def test_a_snapshot_ends_with_the_snapshot_it_began_with() -> None:
    taking = given(worlds.sandbox, STARTED, SNAP)
    taking.when("end_snapshot", "snap-" + "9" * 24, True).then_nothing()
    taking.when("end_snapshot", SNAPSHOT, False, FAILURE).then("sandbox.snapshot-ended", operation=None, state=SandboxState.RUNNING)


def test_an_audit_record_has_no_arguments() -> None:
    then = given(worlds.sandbox, STARTED).when("executed", "exec", 0, 12.5, "/bin/" + "x" * 500, 10, 0)
    then.then("sandbox.executed", again="news")
    assert len(then.events[0].argv0) == 256


def test_a_command_runs_only_in_a_running_sandbox() -> None:
    given(worlds.sandbox, STARTED).when("require_exec").then_nothing()
    given(worlds.sandbox, STARTED, PAUSE, PAUSED).when("require_exec").then_refused(
        "sandbox.illegal-state", state="PAUSED", allowed=["RUNNING"]
    )


def test_resuming_keeps_address_and_driver_that_the_node_does_not_repeat() -> None:
    given(worlds.sandbox, STARTED, PAUSE, PAUSED, RESUME).when("resumed", "resume").then(
        "sandbox.resumed", address="10.0.0.2", driver="sim"
    )


def test_events_of_the_log_make_the_same_past_as_commands() -> None:
    pending = worlds.sandbox()
    event = SandboxStopRequested(
        originator_id=SANDBOX, originator_version=2, timestamp=LATER, command="stop", reason="user_stop", grace_s=5
    )
    given(pending, event).when("mark_running", 1, "sim").then_nothing()
