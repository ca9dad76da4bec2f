"""Other limits while a sandbox runs: asked for, kept by its node, and never mixed up with what else is being done to it."""

from __future__ import annotations

import pytest
from support import worlds
from support.gwt import did, given
from support.worlds import FAILURE, LATER, LIMITS, PAUSE, PAUSED, STARTED

from domain.kernel.errors import Invalid
from domain.sandboxes.commands import SandboxUpdateLimits
from domain.sandboxes.spec import Limits

pytestmark = pytest.mark.quick

FIRST = Limits(cpu=1, memory_mb=512, pids=1024)
MORE = Limits(cpu=1, memory_mb=1024, pids=1024)


def test_it_has_them_when_its_node_says_so_and_keeps_those_that_were_not_named() -> None:
    asked = given(worlds.sandbox, STARTED).when("request_limits", "c", {"memory_mb": 1024}, LATER)
    begun = asked.then("sandbox.operation-begun", limits=FIRST)
    assert begun.aggregate.operation.limits == MORE
    changed = begun.when("limits_changed", "c").then("sandbox.limits-changed", limits=MORE, operation=None)
    assert changed.aggregate.spec.recipe.memory_mb == 512, "a specification never changes"


def test_a_refusal_by_the_node_leaves_them_as_they_are() -> None:
    given(worlds.sandbox, STARTED, LIMITS).when("operation_failed", "limits", FAILURE).then(
        "sandbox.operation-failed", limits=FIRST, operation=None
    )


def test_what_it_has_already_is_no_news() -> None:
    given(worlds.sandbox, STARTED).when("request_limits", "c", {"cpu": 1.0, "pids": 1024}, LATER).then_nothing()
    given(worlds.sandbox, STARTED, LIMITS).when("request_limits", "limits", {"memory_mb": 1024}, LATER).then_nothing()


def test_a_paused_one_can_have_others_and_stays_paused() -> None:
    paused = given(worlds.sandbox, STARTED, PAUSE, PAUSED, LIMITS)
    paused.when("limits_changed", "limits").then("sandbox.limits-changed", limits=MORE, state="PAUSED")


def test_one_thing_is_done_to_it_at_a_time() -> None:
    given(worlds.sandbox, STARTED, LIMITS).when("request_pause", "p", LATER).then_refused("sandbox.illegal-state", operation="limits")
    given(worlds.sandbox, STARTED, PAUSE).when("request_limits", "c", {"pids": 64}, LATER).then_refused(
        "sandbox.illegal-state", operation="pause"
    )


def test_an_answer_after_the_deadline_is_still_the_truth() -> None:
    expired = given(worlds.sandbox, STARTED, LIMITS, did("operation_expired", "limits", after=2 * worlds.HOUR))
    expired.when("limits_changed", "limits").then("sandbox.limits-changed", limits=MORE)
    expired.when("limits_changed", "another").then_nothing()


@pytest.mark.parametrize("body", ["", '"cpu":0', '"memory_mb":1', '"pids":1', '"cpu":null,"pids":null', '"disk_mb":5'])
def test_nothing_too_little_and_what_cannot_be_changed_are_refused(body: str) -> None:
    with pytest.raises(Invalid):
        SandboxUpdateLimits.parse(f'{{"sandbox_id":"sb-{"a" * 20}"{"," if body else ""}{body}}}'.encode())
