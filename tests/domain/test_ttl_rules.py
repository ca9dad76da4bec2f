"""Time to live: absolute or idle, never eaten by a pause, and what it demands when it is over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support import worlds
from support.gwt import did, given
from support.worlds import PAUSE, PAUSED, RESUME, SNAP, STARTED

from domain.sandboxes.sandbox import Ttl

pytestmark = pytest.mark.quick

MINUTE = Ttl(seconds=60)
IDLE = Ttl(seconds=60, kind="idle")
RESUMED = did("resumed", "resume")


def test_it_begins_when_the_sandbox_runs() -> None:
    pending = given(worlds.sandbox(MINUTE))
    assert pending.aggregate.ends_at is None
    started = pending.when("mark_running", 1, "sim", after=100).then("sandbox.started", ttl_generation=1)
    assert started.aggregate.ends_at == started.at + timedelta(seconds=60)


def test_when_it_is_over_it_demands_the_end_once() -> None:
    live = given(worlds.sandbox(MINUTE), STARTED)
    live.when("ttl_due", 1, after=59).then_nothing()
    over = live.when("ttl_due", 1, after=60)
    assert over.answer == "delete"
    over.then("sandbox.ttl-expired", ttl_action="delete", ends_at=None)
    assert live.when("ttl_due", 1, after=61).answer == "delete"
    live.when("request_delete", "c").then("sandbox.delete-requested", reason="ttl_expired")


def test_a_stale_timer_is_ignored() -> None:
    extended = given(worlds.sandbox(MINUTE), STARTED, did("set_ttl", 3600))
    late = extended.when("ttl_due", 1, after=100)
    late.then_nothing()
    assert late.answer is None


def test_a_pause_stops_the_clock_and_a_resume_gives_the_rest() -> None:
    """reference/user-experience.md §6.3."""
    paused = given(worlds.sandbox(MINUTE), STARTED, did("request_pause", "pause", worlds.LATER, after=20)).when("paused", "pause", after=0)
    known = paused.then("sandbox.paused", ends_at=None, ttl_left_s=40.0)
    known.when("ttl_due", 1, after=1000).then_nothing()
    resumed = given(known.aggregate, did("request_resume", "resume", worlds.LATER, after=5000)).when("resumed", "resume", after=0)
    on = resumed.then("sandbox.resumed", ttl_left_s=None, ttl_generation=2)
    assert on.aggregate.ends_at == on.at + timedelta(seconds=40)


def test_a_sandbox_that_was_paused_because_its_time_was_over_gets_a_new_one() -> None:
    pausing = Ttl(seconds=60, on_ttl="pause", auto_resume=True)
    over = given(worlds.sandbox(pausing), STARTED, did("ttl_due", 1, after=60), PAUSE, PAUSED)
    assert (over.aggregate.ttl_action, over.aggregate.ttl_left_s) == (None, None)
    resumed = given(over.aggregate, RESUME).when("resumed", "resume").then("sandbox.resumed")
    assert resumed.aggregate.ends_at == resumed.at + timedelta(seconds=60)


def test_what_it_demands_waits_for_an_operation_in_progress() -> None:
    over = given(worlds.sandbox(Ttl(seconds=60, on_ttl="pause")), STARTED, SNAP).when("ttl_due", 1, after=60)
    known = over.then("sandbox.ttl-expired", ttl_action="pause")
    known.when("request_pause", "c", worlds.LATER).then_refused("sandbox.illegal-state", operation="snapshot")
    ended = given(known.aggregate, did("end_snapshot", worlds.SNAPSHOT, True))
    assert ended.aggregate.ttl_action == "pause"


def test_activity_renews_an_idle_time_at_most_every_thirty_seconds() -> None:
    live = given(worlds.sandbox(IDLE), STARTED)
    live.when("touch", after=29).then_nothing()
    touched = live.when("touch", after=30).then("sandbox.touched", ttl_generation=1)
    assert touched.aggregate.ends_at == touched.at + timedelta(seconds=60)
    touched.when("ttl_due", 1, after=30).then_nothing()


def test_whoever_is_at_work_for_long_is_not_idle_and_gives_back_what_he_did_not_need() -> None:
    live = given(worlds.sandbox(IDLE), STARTED)
    live.when("touch", 20, after=5).then_nothing()
    held = live.when("touch", 600, after=5).then("sandbox.touched")
    assert held.aggregate.ends_at == held.at + timedelta(seconds=660)
    held.when("ttl_due", 1, after=61).then_nothing()
    held.when("touch", 60, after=31).then_nothing()
    done = held.when("touch", after=10).then("sandbox.touched")
    assert done.aggregate.ends_at == done.at + timedelta(seconds=60)
    given(worlds.sandbox(MINUTE), STARTED).when("touch", 600, after=5).then_nothing()


def test_activity_does_not_renew_an_absolute_time() -> None:
    given(worlds.sandbox(MINUTE), STARTED).when("touch", after=31).then_nothing()


@pytest.mark.parametrize("forever", [None, -1])
def test_null_and_minus_one_are_for_ever(forever: float | None) -> None:
    live = given(worlds.sandbox(MINUTE), STARTED).when("set_ttl", forever).then("sandbox.ttl-set", ends_at=None)
    assert live.aggregate.ttl.seconds is None
    live.when("ttl_due", 2, after=10**6).then_nothing()
    assert Ttl(seconds=forever).seconds is None


def test_zero_is_at_once() -> None:
    live = given(worlds.sandbox, STARTED).when("set_ttl", 0).then("sandbox.ttl-set")
    assert live.when("ttl_due", 1, after=0).answer == "delete"


def test_it_may_be_shortened_and_keeps_its_policy() -> None:
    policy = Ttl(seconds=600, kind="idle", on_ttl="pause", auto_resume=True)
    live = given(worlds.sandbox(policy), STARTED).when("set_ttl", 10).then("sandbox.ttl-set")
    assert live.aggregate.ttl == policy.model_copy(update={"seconds": 10})
    assert live.aggregate.ends_at == live.at + timedelta(seconds=10)


def test_setting_it_while_paused_counts_from_the_resume() -> None:
    set_ = given(worlds.sandbox(MINUTE), STARTED, PAUSE, PAUSED).when("set_ttl", 600).then("sandbox.ttl-set", ends_at=None)
    resumed = given(set_.aggregate, RESUME).when("resumed", "resume").then("sandbox.resumed")
    assert resumed.aggregate.ends_at == resumed.at + timedelta(seconds=600)


def test_a_rollback_of_a_running_sandbox_leaves_its_clock_alone() -> None:
    live = given(worlds.sandbox(MINUTE), STARTED, worlds.ROLLBACK)
    ends_at = live.aggregate.ends_at
    live.when("rolled_back", 1).then("sandbox.rolled-back", ends_at=ends_at, ttl_generation=1)
