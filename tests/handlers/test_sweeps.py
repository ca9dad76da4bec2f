"""What of a node's holdings is nobody's: by the log, read to its end, and never by doubt (reference/miren-sandbox.md §7.1, §7.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.places import nodes, refusal
from support.waiting import eventually

from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.template import Template

pytestmark = pytest.mark.quick

STRANGER = "sb-" + "z" * 20
COPY = "rfs-" + "0" * 24


def passes(place: Any, **time: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(**time)


def asked_to_sweep(place: Any) -> list[dict[str, Any]]:
    return [order.body for order in place.node.did(Verb.NODE_SWEEP)]


async def dead(place: Any, sandbox: str) -> None:
    await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})


async def becomes(place: Any, sandbox: str, state: SandboxState) -> None:
    async def is_so() -> bool:
        return (await place.get(Sandbox, sandbox)).state is state

    await eventually(is_so)


async def taken(place: Any) -> None:
    """Every report that was sent is taken."""
    streams = place.nc.jetstream()

    async def idle() -> bool:
        return (await streams.stream_info("REPORTS")).state.messages == 0

    await eventually(idle)


def test_the_dead_go_after_their_grace_and_whoever_lives_there_stays(at) -> None:
    """Scenarios 21 and 22: the log is read to its end, and what it places there is kept whatever the node forgot."""

    async def test(place) -> None:
        template = await place.template()
        lives, died = await place.sandbox(template), await place.sandbox(template)
        await dead(place, died)
        held = {"sandboxes": {lives: "running", died: "running"}, "strangers": {STRANGER: ["oci", "network"]}}
        await place.node.holds(**held)
        await eventually(lambda: asked_to_sweep(place))
        assert asked_to_sweep(place)[0]["sandboxes"] == {STRANGER: "unknown"}, "its own teardown comes first"
        passes(place, minutes=3, seconds=1)
        await place.node.holds(**held)
        await eventually(lambda: len(asked_to_sweep(place)) == 2)
        assert asked_to_sweep(place)[1]["sandboxes"] == {STRANGER: "unknown", died: "dead"}

    at(test)


def test_what_was_placed_on_another_node_is_nobodys_here(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template)
        async with nodes(place, "node-2") as (other,):
            await other.holds(strangers={sandbox: ["oci"]})
            await eventually(lambda: other.did(Verb.NODE_SWEEP))
            assert other.did(Verb.NODE_SWEEP)[0].body["sandboxes"] == {sandbox: "elsewhere"}
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING

    at(test)


def test_a_node_that_could_not_list_everything_is_told_nothing_and_a_person_is_told_why(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template)
        passes(place, minutes=10)
        await place.node.holds(strangers={STRANGER: ["network"]}, unlisted=["oci"])
        await taken(place)
        assert asked_to_sweep(place) == []
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING
        refused = await refusal(place.do("node.sweep", {"node_id": "node-1"}))
        assert (refused.code, refused.retryable) == ("node.unlisted", True)

    at(test)


def test_a_sandbox_that_its_node_does_not_hold_any_more_is_lost_but_not_one_that_just_came_up(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template)
        await place.node.holds(sandboxes={})
        await taken(place)
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING
        place.node.held = {}
        report = place.node.holdings("timer", age_s=-181)
        await place.node.holds(**{name: value for name, value in report.items() if name != "trigger"})
        await becomes(place, sandbox, SandboxState.DEAD)
        assert (await place.get(Sandbox, sandbox)).reason == "node_lost"

    at(test)


def test_what_came_of_a_sweep_is_in_the_log_once(at) -> None:
    async def test(place) -> None:
        await place.node.holds(strangers={STRANGER: ["oci"]})

        async def known() -> Node:
            return await place.get(Node, "node-1", SYSTEM_PROJECT)

        before = (await known()).version

        async def told() -> bool:
            return (await known()).version > before

        await eventually(told)
        version = (await known()).version
        place.node.refuse = lambda order: Failure(code="order.deadline-exceeded", message="too late", retryable=True)
        await place.node.holds(strangers={STRANGER: ["oci"]})
        await eventually(lambda: len(asked_to_sweep(place)) == 2)
        await taken(place)
        assert (await known()).version == version, "a refusal is no news"

    at(test)


def test_a_dry_run_tells_what_would_go_and_a_sweep_what_went(at) -> None:
    async def test(place) -> None:
        place.node.held = {"strangers": {STRANGER: ["oci"]}}
        would = await place.do("node.sweep", {"node_id": "node-1", "dry_run": True})
        gone = {"kind": "sandbox", "id": STRANGER, "why": "unknown"}
        assert (would["removed"], would["dry_run"], asked_to_sweep(place)) == ([gone], True, [])
        went = await place.do("node.sweep", {"node_id": "node-1"}, command_id="sweep-1")
        assert (went["removed"], went["settled"]) == ([gone], True)
        again = await place.do("node.sweep", {"node_id": "node-1"}, command_id="sweep-1")
        assert (again["removed"], len(asked_to_sweep(place))) == ([gone], 1)
        assert (await place.get(Node, "node-1", SYSTEM_PROJECT)).withstanding == ()
        place.node.held = {}
        assert (await place.do("node.sweep", {"node_id": "node-1"}))["removed"] == []
        place.node.hold = lambda order: True
        assert (await refusal(place.do("node.sweep", {"node_id": "node-1", "wait_s": 1}))).code == "node.offline"

    at(test)


def test_a_copy_goes_when_its_artifact_is_deleted_or_unknown_for_a_day_and_never_for_any_other_reason(at) -> None:
    """Scenario 24: pressure changes when this is looked at, never what may go."""

    async def test(place) -> None:
        template = await place.template()
        used = (await place.get(Template, template)).artifact_id
        await place.do("template.delete", {"template": await place.template(disk_mb=2048), "wait_s": 10})

        async def deleted() -> list[str]:
            known = [await place.get(Artifact, name, SYSTEM_PROJECT) for name in place.plane.control.fleet.artifacts | orphans]
            return [each.id for each in known if each.state is ArtifactState.DELETED]

        orphans = {order.body["artifact_id"] for order in place.node.did(Verb.ARTIFACT_BUILD)}
        (gone,) = await eventually(deleted)
        now, day = datetime.now(UTC), timedelta(hours=24)
        copies = {used: now - 2 * day, gone: now, COPY: now - day + timedelta(minutes=5), "rfs-foreign": now - 2 * day}
        held = {name: at.isoformat() for name, at in copies.items()}
        await place.node.holds("pressure", artifacts=held)
        await eventually(lambda: asked_to_sweep(place))
        assert asked_to_sweep(place)[0]["artifacts"] == {gone: "deleted"}
        await place.node.holds("schedule", artifacts={COPY: (now - day).isoformat()})
        await eventually(lambda: len(asked_to_sweep(place)) == 2)
        assert asked_to_sweep(place)[1]["artifacts"] == {COPY: "unknown"}

    at(test)
