"""``restart: always``: what ends comes up again, later each time it ends soon (reference/miren-sandbox.md §1.3, §1.10)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.gwt import T0, did, given
from support.worlds import FAILURE, REF, SANDBOX, TEMPLATE

from domain.nodes.orders import PortStatus
from domain.sandboxes.restarting import pause_after
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.sandboxes.spec import Recipe, SandboxSpec

pytestmark = pytest.mark.quick

UP = did("mark_running", 1, "sim", "10.0.0.2")


def always() -> Sandbox:
    return Sandbox.create(SANDBOX, T0, SandboxSpec(template_id=TEMPLATE, artifact=REF, recipe=Recipe(), restart="always"), "n1")


def test_the_pause_doubles_and_is_bounded() -> None:
    assert [pause_after(n).total_seconds() for n in (1, 2, 3, 7, 8, 10_000)] == [10, 20, 40, 640, 900, 900]


def test_what_ends_is_to_come_up_again_and_its_exit_is_kept() -> None:
    crashed = given(always, UP).when("exited", 0, 3).then("sandbox.crashed", state=SandboxState.RUNNING, crashes=1)
    restart = crashed.aggregate.restarting
    assert (restart.generation, restart.not_before - crashed.at) == (1, timedelta(seconds=10))
    assert crashed.aggregate.exit.code == 3
    up = given(crashed.aggregate).when("restarted", 1, "10.0.0.3").then("sandbox.restarted", generation=1, address="10.0.0.3")
    assert (up.aggregate.operation, up.aggregate.crashes) == (None, 1)
    up.when("exited", 0, 3).then_nothing()


def test_crashes_in_a_row_count_up_until_it_was_steady() -> None:
    again = given(always, UP, did("exited", 0, 1), did("restarted", 1), did("exited", 1, 1, after=60), did("restarted", 2))
    assert again.aggregate.crashes == 2
    third = given(again.aggregate).when("exited", 2, 1, after=119).then("sandbox.crashed", crashes=3)
    assert third.aggregate.restarting.generation == 3
    steady = given(always, UP, did("exited", 0, 1), did("restarted", 1), did("exited", 1, 1, after=120))
    assert steady.aggregate.crashes == 1


def test_a_start_that_fails_is_one_crash_more_however_long_it_took() -> None:
    waits = given(always, UP, did("exited", 0, 1))
    failed = waits.when("restart_failed", 1, FAILURE, after=1000).then("sandbox.crashed", crashes=2)
    assert (failed.aggregate.restarting.generation, failed.aggregate.exit.code) == (2, 1)
    failed.when("restarted", 1).then_nothing()
    failed.when("restart_failed", 1, FAILURE).then_nothing()


def test_nothing_serves_its_ports_while_it_waits() -> None:
    """Also when the node had seen that something did, and its news comes late."""
    listens = (PortStatus(port=80, status="listening"),)
    up = did("mark_running", 1, "sim", "10.0.0.2", listens)
    waits = given(always, up, did("exited", 0, 1))
    assert waits.aggregate.require_port(80).status == "closed"
    waits.when("ports_seen", 0, T0, listens).then_nothing()
    again = given(waits.aggregate).when("restarted", 1, "10.0.0.2", listens).then("sandbox.restarted")
    assert again.aggregate.require_port(80).status == "listening"


@pytest.mark.parametrize("asked", ["request_stop", "request_delete"])
def test_who_wants_its_end_gets_it_also_while_it_waits(asked: str) -> None:
    stopped = given(always, UP, did("exited", 0, 1)).when(asked, "c1").then
    topic = "sandbox.stop-requested" if asked == "request_stop" else "sandbox.delete-requested"
    ended = stopped(topic, state=SandboxState.STOPPED, operation=None)
    ended.when("restarted", 1).then_nothing()
    ended.when("exited", 0, 1).then_nothing()


def test_what_vanished_with_its_machine_does_not_come_up_again() -> None:
    given(always, UP).when("exited", 0, None, "lost").then("sandbox.exited", state=SandboxState.STOPPED, reason="node_lost")


def test_without_the_wish_the_end_is_the_end() -> None:
    never = Sandbox.create(SANDBOX, T0, SandboxSpec(template_id=TEMPLATE, artifact=REF, recipe=Recipe()), "n1")
    given(never, UP).when("exited", 0, 3).then("sandbox.exited", state=SandboxState.STOPPED)
