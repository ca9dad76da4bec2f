"""Nodes get the replicas that they lack, a few at a time, and templates say what they are then (reference/cubesandbox.md §4.7, §12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.node import ScriptedNode
from support.places import nodes
from support.waiting import eventually

from domain.kernel.ids import replica_id
from domain.nodes.orders import Failure, Verb
from domain.templates.convergence import AT_ONCE
from domain.templates.job import Job, Operation
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template, TemplateState
from handlers.control import Deadlines
from handlers.processes import convergence

pytestmark = pytest.mark.quick


async def counts(place, template: str) -> tuple[str, int, int, int]:
    found = await place.get(Template, template)
    return found.state.value, found.ready, found.failed, found.total


async def becomes(place, template: str, *wanted: object) -> None:
    async def is_so() -> bool:
        return await counts(place, template) == wanted

    await eventually(is_so)


async def state_on(place, template: str, node: str) -> str | None:
    found = await place.get(Replica, replica_id(template, node))
    return None if found is None else found.state.value


async def look(place) -> None:
    """What the round of housekeeping does."""
    await place.plane._converge()


def passes(place, minutes: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(minutes=minutes)


async def converging(place) -> list[Job]:
    jobs = [await place.get(Job, job) for job in list(place.plane.control.fleet.wants.node_of_job)]
    assert all(job.operation is Operation.CONVERGE for job in jobs)
    return jobs


def test_a_node_that_joins_gets_every_template_a_few_at_a_time(at) -> None:
    async def test(place) -> None:
        templates = [await place.template(memory_mb=64 + n) for n in range(5)]
        most = 0
        async with nodes(place) as _:
            await place.do("node.enroll", {"node_id": "node-2"})
            second = ScriptedNode(place.nc, "node-2")
            second.hold = lambda order: order.verb == Verb.REPLICA_DISTRIBUTE
            async with second:
                await eventually(lambda: len(second.did(Verb.REPLICA_DISTRIBUTE)) == AT_ONCE)
                await look(place)
                most = len({key for key in place.plane.control.fleet.replicas if key[1] == "node-2"})
                second.hold = lambda order: False
                for order in second.did(Verb.REPLICA_DISTRIBUTE):
                    await second.answer(order)
                for template in templates:
                    await becomes(place, template, "READY", 2, 0, 2)
        assert most == AT_ONCE
        jobs = await converging(place)
        await eventually(lambda: not any(key[0] == "job" for key in place.plane.control.fleet.open))
        assert sorted(job.resource_id for job in jobs) == sorted(templates)

    at(test)


def test_only_nodes_that_are_open_in_scope_and_able_are_given_anything(at) -> None:
    async def test(place) -> None:
        await place.do("node.enroll", {"node_id": "node-2"})
        await place.do("node.cordon", {"node_id": "node-2"})
        here, everywhere = await place.template(nodes=["node-1"]), await place.template(memory_mb=64)
        foreign = await place.template(driver="sim", memory_mb=96)
        async with nodes(place, "node-2", "node-3"):
            for template in (everywhere, foreign):
                await becomes(place, template, "READY", 2, 0, 2)
            await look(place)
            assert await state_on(place, everywhere, "node-2") is None, "cordoned"
            assert [await state_on(place, here, node) for node in ("node-2", "node-3")] == [None, None], "out of its scope"
            await place.do("node.uncordon", {"node_id": "node-2"})
            await becomes(place, everywhere, "READY", 3, 0, 3)
            assert (await counts(place, here))[1:] == (1, 0, 1)

    at(test)


def test_a_failed_replica_is_tried_again_later_and_each_time_later_still(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.do("node.enroll", {"node_id": "node-2"})
        second = ScriptedNode(place.nc, "node-2")
        second.refuse = lambda order: Failure(code="node.broken", message="no") if order.verb == Verb.REPLICA_PREPARE else None
        async with second:
            await becomes(place, template, "PARTIALLY_READY", 1, 1, 2)
            await look(place)
            assert len(second.did(Verb.REPLICA_PREPARE)) == 1, "not at once"
            passes(place, 11)
            await look(place)
            await eventually(lambda: len(second.did(Verb.REPLICA_PREPARE)) == 2)
            await becomes(place, template, "PARTIALLY_READY", 1, 1, 2)
            await settled(place)
            second.refuse = lambda order: None
            passes(place, 20)
            await look(place)
            assert len(second.did(Verb.REPLICA_PREPARE)) == 2, "twice as long after the second failure"
            passes(place, 33)
            await look(place)
            await becomes(place, template, "READY", 2, 0, 2)

    async def settled(place) -> None:
        await eventually(lambda: not place.plane.control.fleet.wants.converging["node-2"])

    at(test)


def test_a_node_that_comes_back_gets_what_its_eviction_took(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        async with nodes(place, "node-2") as (second,):
            await becomes(place, template, "READY", 2, 0, 2)
            await place.do("node.evict", {"node_id": "node-2"})
            await becomes(place, template, "PARTIALLY_READY", 1, 1, 2)
            await place.do("node.enroll", {"node_id": "node-2"})
            await second.hello()
            await becomes(place, template, "READY", 2, 0, 2)

    at(test)


def test_a_template_with_a_maximum_is_on_no_more_nodes(at) -> None:
    async def test(place) -> None:
        async with nodes(place, "node-2"):
            few = await place.template(max_replicas=1)
            assert (await counts(place, few))[3] == 1
            many = await place.template(memory_mb=64)
            async with nodes(place, "node-3"):
                await becomes(place, many, "READY", 3, 0, 3)
                await look(place)
                assert (await counts(place, few))[3] == 1

    at(test)


def test_a_minimum_comes_first_then_priority(at) -> None:
    async def test(place) -> None:
        low, high, short = [
            await place.template(memory_mb=64 + n, **more) for n, more in enumerate(({}, {"priority": 5}, {"min_replicas": 2}))
        ]
        await place.do("node.enroll", {"node_id": "node-2"})
        second = ScriptedNode(place.nc, "node-2")
        async with second:
            await becomes(place, low, "READY", 2, 0, 2)
            order = list(dict.fromkeys(order.body["template_id"] for order in second.did(Verb.REPLICA_PREPARE)))
            assert (set(order[:2]), order[2]) == ({short, high}, low)
            jobs = [job.resource_id for job in await converging(place)]
            assert jobs == [short, high, low]

    at(test)


def test_a_delete_is_not_held_up_by_convergence_and_leaves_no_replica(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.do("node.enroll", {"node_id": "node-2"})
        second = ScriptedNode(place.nc, "node-2")
        second.hold = lambda order: order.verb == Verb.REPLICA_PREPARE
        async with second:
            (held,) = await eventually(lambda: second.did(Verb.REPLICA_PREPARE))
            await place.do("template.delete", {"template": template, "wait_s": 10})
            assert (await place.get(Template, template)).state is TemplateState.DELETED
            await second.answer(held)
            await eventually(lambda: not place.plane.control.fleet.by_template.get(template))
            assert await state_on(place, template, "node-2") == "REMOVED"
            (job,) = await converging(place)
            await eventually(lambda: ended(place, job.id))

    async def ended(place, job: str) -> bool:
        return not (await place.get(Job, job)).active

    at(test, Deadlines(watchdog_s=0.05))


def test_a_redo_takes_a_replica_over_that_convergence_makes(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.do("node.enroll", {"node_id": "node-2"})
        second = ScriptedNode(place.nc, "node-2")
        second.hold = lambda order: order.verb == Verb.REPLICA_DISTRIBUTE
        async with second:
            await eventually(lambda: second.did(Verb.REPLICA_DISTRIBUTE))
            second.hold = lambda order: False
            await place.do("template.redo", {"template": template, "mode": "ALL", "wait_s": 20})
            await becomes(place, template, "READY", 2, 0, 2)
            (job,) = await converging(place)
            job = await eventually(lambda: over(place, job.id))
            assert job.failure.code == "replica.superseded"

    async def over(place, job: str) -> Job | None:
        found = await place.get(Job, job)
        return None if found.active else found

    at(test)


def test_replicas_of_a_template_that_is_gone_are_removed_however_late_they_come(at) -> None:
    """A replica that was assigned while its template's delete ended: nothing else would ever remove it."""

    async def test(place) -> None:
        template = await place.template()
        control = place.plane.control
        artifact = (await place.get(Template, template)).artifact_id
        await place.do("template.delete", {"template": template, "wait_s": 10})
        identifier = replica_id(template, "node-1")
        cause = control.own_cause("default", "replica", identifier, "late")

        def again(replica: Replica) -> None:
            replica.redo(cause.at, "00000000-0000-5000-8000-000000000009", artifact, "DISTRIBUTING")

        await control.change(Replica, "default", identifier, cause, again)
        await eventually(lambda: removed(place, template))

    async def removed(place, template: str) -> bool:
        return await state_on(place, template, "node-1") == ReplicaState.REMOVED.value

    at(test)


def test_the_keys_of_convergence_are_no_aggregates(at) -> None:
    async def test(place) -> None:
        assert convergence.keys(place.plane.control) == [("convergence", "system", "node-1")]

    at(test)
