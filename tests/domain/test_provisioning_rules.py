"""The provisioning saga as the control plane knows it: steps without gaps, undo that is counted, and what may be given up."""

from __future__ import annotations

import pytest
from support import worlds
from support.gwt import T0, did, given
from support.worlds import FAILURE, HOUR

from domain.nodes.orders import StepReport, StepState
from domain.sandboxes.provisioning import ProvisioningState

pytestmark = pytest.mark.quick


def steps(*names: str, state: StepState = StepState.DONE) -> tuple[StepReport, ...]:
    return tuple(StepReport(step=name, state=state, at=T0) for name in names)


def test_steps_are_recorded_once_and_without_a_gap() -> None:
    begun = given(worlds.provisioning).when("record_steps", 1, 0, steps("root")).then("provisioning.stepped", known=1)
    begun.when("record_steps", 1, 2, steps("start")).then_nothing()
    whole = begun.when("record_steps", 1, 0, steps("root", "network", "start"))
    known = whole.then("provisioning.stepped", known=3)
    assert [step.step for step in whole.events[0].steps] == ["network", "start"]
    known.when("record_steps", 1, 1, steps("network")).then_nothing()
    assert known.aggregate.steps == dict.fromkeys(("root", "network", "start"), StepState.DONE)


def test_steps_of_another_attempt_are_no_news() -> None:
    second = given(worlds.provisioning, did("record_steps", 1, 0, steps("root")), did("retry", 2))
    second.when("record_steps", 1, 1, steps("network")).then_nothing()
    second.when("record_steps", 2, 0, steps("root")).then("provisioning.stepped", known=1)
    second.when("complete", 1).then_nothing()


def test_a_failure_that_is_undone_is_over() -> None:
    failed = given(worlds.provisioning).when("fail", 1, "start", FAILURE).then("provisioning.failed", failed_step="start")
    assert failed.aggregate.state is ProvisioningState.FAILED
    failed.when("retry", 2).then_nothing()


def test_an_undo_is_blocked_after_three_attempts_and_an_hour() -> None:
    """reference/miren-sandbox.md §2.6, scenario 8."""
    undoing = given(worlds.provisioning).when("fail", 1, "start", FAILURE, ("network", "root")).then("provisioning.failed")
    many = given(undoing.aggregate, *[did("undo_failed", 1, FAILURE)] * 5)
    assert many.aggregate.state is ProvisioningState.UNDOING, "five times, but not for an hour"
    few = given(worlds.provisioning, did("fail", 1, "start", FAILURE, ("network",)), did("undo_failed", 1, FAILURE, after=HOUR))
    assert few.aggregate.state is ProvisioningState.UNDOING, "an hour, but only twice"
    both = few.when("undo_failed", 1, FAILURE, ("network",)).then("provisioning.undo-failed")
    assert both.aggregate.state is ProvisioningState.BLOCKED


def test_only_a_blocked_undo_can_be_abandoned() -> None:
    given(worlds.provisioning).when("abandon").then_refused("sandbox.undo-blocked", state="RUNNING")
    given(worlds.provisioning, worlds.LEFT).when("abandon").then_refused("sandbox.undo-blocked", state="UNDOING")
    blocked = given(worlds.provisioning, *worlds.BLOCKED).when("abandon")
    blocked.then("provisioning.abandoned")
    assert blocked.answer == ("network",)


def test_another_try_unblocks_and_may_succeed() -> None:
    again = given(worlds.provisioning, *worlds.BLOCKED).when("retry", 2).then("provisioning.retried", attempt=2)
    assert again.aggregate.state is ProvisioningState.UNDOING
    done = again.when("fail", 2, "", FAILURE).then("provisioning.failed", uncompensated=())
    assert done.aggregate.state is ProvisioningState.FAILED
    assert done.aggregate.failed_step == "start", "the step that failed first"


def test_a_superseded_creation_still_tells_its_story() -> None:
    superseded = given(worlds.provisioning, did("supersede"))
    superseded.when("record_steps", 1, 0, steps("root", state=StepState.UNDONE)).then("provisioning.stepped")
    superseded.when("complete", 1).then_nothing()
    superseded.when("fail", 1, "start", FAILURE).then_nothing()
