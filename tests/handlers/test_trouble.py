"""When nodes fail, vanish or answer late: nothing hangs, nothing is lost, and the caller is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.job import Job
from domain.templates.template import Template, TemplateState
from handlers.control import Deadlines

SHORT = Deadlines(job_s=1, provision_s=0.5, operation_s=0.5, exec_slack_s=0.5, watchdog_s=0.1)


def test_a_retryable_build_failure_is_tried_again_and_a_final_one_is_told(at) -> None:
    async def test(place) -> None:
        tries: list[int] = []

        def twice(order):
            if order.verb == Verb.ARTIFACT_BUILD:
                tries.append(order.attempt)
                return Failure(code="registry.unavailable", message="try later", retryable=True) if len(tries) < 3 else None
            return None

        place.node.refuse = twice
        await place.template()
        assert tries == [1, 2, 3]
        place.node.refuse = lambda order: (
            Failure(code="image.not-found", message="no such tag") if order.verb == Verb.IMAGE_RESOLVE else None
        )
        with pytest.raises(Refused) as refused:
            await place.do("template.create", {"image": "oci:/other", "wait_s": 10})
        assert refused.value.code == "image.not-found"
        template = await place.get(Template, refused.value.details["template_id"])
        assert (template.state, template.last_error) == (TemplateState.FAILED, "no such tag")

    at(test)


def test_a_failed_start_is_told_to_who_waits_and_leaves_a_dead_sandbox(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.refuse = lambda order: (
            Failure(code="driver.no-command", message="no such program") if order.verb == Verb.SANDBOX_PROVISION else None
        )
        with pytest.raises(Refused) as refused:
            await place.sandbox(template)
        assert refused.value.code == "sandbox.startup-failed"
        assert refused.value.details["cause"] == "driver.no-command"
        sandbox = await place.get(Sandbox, refused.value.details["sandbox_id"])
        assert (sandbox.state, sandbox.reason) == (SandboxState.DEAD, "startup_failed")

    at(test)


def test_a_silent_node_ends_creations_operations_and_jobs_at_their_deadlines(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template)
        place.node.hold = lambda order: True
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.pause", {"sandbox_id": sandbox, "wait_s": 20})
        assert (refused.value.code, refused.value.retryable) == ("node.offline", True)
        late = (await place.do("sandbox.create", {"template": template}))["sandbox_id"]
        await eventually(lambda: is_dead(place, late))
        job = (await place.do("template.create", {"image": "oci:/new"}))["job_id"]
        await eventually(lambda: has_failed(place, job))

    async def is_dead(place, sandbox: str) -> bool:
        return (await place.get(Sandbox, sandbox)).state is SandboxState.DEAD

    async def has_failed(place, job: str) -> bool:
        found = await place.get(Job, job)
        return found.failure is not None and found.failure.code == "job.expired"

    at(test, SHORT)


def test_an_exec_that_nobody_answers_is_refused_as_retryable(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        place.node.hold = lambda order: True
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.exec", {"sandbox_id": sandbox, "cmd": ["x"], "timeout_s": 0.2})
        assert (refused.value.code, refused.value.retryable) == ("node.offline", True)

    at(test, SHORT)


def test_a_node_without_heartbeats_goes_offline_and_keeps_its_sandboxes(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template)

        async def offline() -> bool:
            return (await place.get(Node, "node-1", SYSTEM_PROJECT)).status == "offline"

        await eventually(offline, within=15)
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.create", {"template": template})
        assert (refused.value.code, refused.value.retryable) == ("node.offline", True)
        await place.node.hello()
        await eventually(lambda: bool(place.plane.control.fleet.healthy_nodes()))
        await place.sandbox(template)

    at(test, Deadlines(node_dead_s=1))


def test_what_was_on_an_evicted_node_is_dead_and_the_node_is_not_believed(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        await place.do("node.evict", {"node_id": "node-1"})

        async def dead() -> bool:
            found = await place.get(Sandbox, sandbox)
            return found.state is SandboxState.DEAD and found.reason == "node_lost"

        await eventually(dead)
        await place.node.hello()
        with pytest.raises(Refused):
            await place.do("sandbox.create", {"template": "none"})
        assert (await place.get(Node, "node-1", SYSTEM_PROJECT)).status == "evicted"

    at(test)


def test_a_time_to_live_ends_a_sandbox_and_a_pause_stops_its_clock(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        short = await place.sandbox(template, ttl_s=0.3)
        resting = await place.sandbox(template, ttl_s=0.3, on_ttl="pause")

        async def ended() -> bool:
            dead, paused = await place.get(Sandbox, short), await place.get(Sandbox, resting)
            return dead.state is SandboxState.DEAD and dead.reason == "ttl_expired" and paused.state is SandboxState.PAUSED

        await eventually(ended)
        until = datetime.now(UTC) + timedelta(seconds=0.5)

        async def later() -> bool:
            return datetime.now(UTC) > until

        await eventually(later)
        assert (await place.get(Sandbox, resting)).state is SandboxState.PAUSED

    at(test)


def test_using_a_sandbox_puts_the_end_of_its_idle_time_off(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), ttl_s=600, ttl_kind="idle")
        before = (await place.get(Sandbox, sandbox)).ends_at
        place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(seconds=60)
        await place.do("sandbox.exec", {"sandbox_id": sandbox, "cmd": ["true"]})
        assert (await place.get(Sandbox, sandbox)).ends_at > before

    at(test)


def test_a_main_process_that_ends_takes_its_sandbox_with_it(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        await place.node.exited("default", sandbox, code=3)

        async def dead() -> bool:
            found = await place.get(Sandbox, sandbox)
            return found.state is SandboxState.DEAD and found.exit is not None and found.exit.code == 3

        await eventually(dead)

    at(test)


def test_a_delete_during_creation_fences_it(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_PROVISION
        sandbox = (await place.do("sandbox.create", {"template": template}))["sandbox_id"]
        assert (await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10}))["state"] == "DEAD"
        assert (await place.get(Sandbox, sandbox)).reason == "user_delete"

    at(test)


def test_full_capacity_is_refused_before_anything_is_recorded(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.node.hello(memory_mb=1000)
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].capacity.memory_mb == 1000)
        await place.sandbox(template, memory_mb=900)
        before = await place.plane.control.store.position()
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.create", {"template": template, "memory_mb": 900})
        assert (refused.value.code, refused.value.retryable) == ("capacity.exhausted", True)
        assert await place.plane.control.store.position() == before

    at(test)


def test_many_sandboxes_at_once_all_start(at) -> None:
    async def test(place) -> None:
        template = await place.template(memory_mb=16)
        await asyncio.gather(*(place.sandbox(template) for _ in range(100)))
        assert len(place.plane.control.fleet.sandboxes) == 100

    at(test)
