"""The end of artifacts: the last owner, the nodes, the collector (reference/cubesandbox.md §3.7)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.node import BYTES, ScriptedNode
from support.waiting import eventually

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Verb
from domain.templates.artifact import TTL, Artifact, ArtifactState
from domain.templates.template import Template, TemplateState
from handlers.control import Deadlines
from handlers.plane import ControlPlane

pytestmark = pytest.mark.quick

QUICK = Deadlines(watchdog_s=0.05)
IN_USE = Failure(code="artifact.in-use", message="a sandbox lies over it", retryable=True)


async def artifact_of(place, template: str) -> Artifact:
    return await place.get(Artifact, (await place.get(Template, template)).artifact_id, SYSTEM_PROJECT)


async def state(place, artifact: str) -> ArtifactState:
    return (await place.get(Artifact, artifact, SYSTEM_PROJECT)).state


async def becomes(place, artifact: str, wanted: ArtifactState) -> None:
    async def is_so() -> bool:
        return await state(place, artifact) is wanted

    await eventually(is_so)


def passes(place, **time: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(**time)


async def removals(place) -> int:
    return len(place.node.did(Verb.ARTIFACT_REMOVE))


def test_the_last_owners_going_removes_it_everywhere_and_a_node_that_refuses_is_asked_again(at) -> None:
    """§11, scenario 11."""

    async def test(place) -> None:
        one, two = await place.template(), await place.template(memory_mb=64)
        artifact = (await artifact_of(place, one)).id
        await place.do("template.delete", {"template": one, "wait_s": 10})
        assert await state(place, artifact) is ArtifactState.READY
        place.node.refuse = lambda order: IN_USE if order.verb == Verb.ARTIFACT_REMOVE else None
        await place.do("template.delete", {"template": two, "wait_s": 10})
        assert (await place.get(Template, two)).state is TemplateState.DELETED, "the delete does not wait for that"
        await eventually(lambda: place.node.did(Verb.ARTIFACT_REMOVE))
        assert await state(place, artifact) is ArtifactState.CLEANUP_PENDING
        place.node.refuse = lambda order: None
        passes(place, minutes=10)
        await becomes(place, artifact, ArtifactState.DELETED)
        assert await objects.stat(place.nc, ARTIFACTS_BUCKET, artifact) is None
        assert await removals(place) == 2

    at(test, QUICK)


def test_a_build_that_claims_it_during_its_clean_up_keeps_what_it_built(at) -> None:
    """§11, scenario 12."""

    async def test(place) -> None:
        template = await place.template()
        artifact = (await artifact_of(place, template)).id
        place.node.hold = lambda order: order.verb == Verb.ARTIFACT_REMOVE
        await place.do("template.delete", {"template": template, "wait_s": 10})
        (held,) = await eventually(lambda: place.node.did(Verb.ARTIFACT_REMOVE))
        again = await artifact_of(place, await place.template(memory_mb=64))
        assert (again.id, again.state, again.generation) == (artifact, ArtifactState.READY, 2)
        await place.node.answer(held)
        await place.template(memory_mb=96)
        known = await place.get(Artifact, artifact, SYSTEM_PROJECT)
        assert (known.state, known.generation, list(known.placements)) == (ArtifactState.READY, 2, ["node-1"])
        assert await objects.check(place.nc, ARTIFACTS_BUCKET, artifact, known.sha256)

    at(test, QUICK)


def test_a_build_whose_job_is_over_is_collected_and_what_it_still_brings_too(at) -> None:
    async def test(place) -> None:
        place.node.hold = lambda order: order.verb == Verb.ARTIFACT_BUILD
        made = await place.do("template.create", {"image": "oci:/images/demo"})
        (order,) = await eventually(lambda: place.node.did(Verb.ARTIFACT_BUILD))
        artifact = order.body["artifact_id"]
        await place.do("template.delete", {"template": made["template_id"], "force": True, "wait_s": 10})
        told = await place.do("artifact.collect", {"dry_run": True})
        assert told["deleted"] == [artifact]
        await place.plane._collect()
        await becomes(place, artifact, ArtifactState.DELETED)
        place.node.hold = lambda order: False
        await place.node.answer(order)
        await becomes(place, artifact, ArtifactState.READY)
        assert (await place.get(Artifact, artifact, SYSTEM_PROJECT)).owners == {}
        assert (await place.do("artifact.collect", {}))["deleted"] == [], "it may be wanted again"
        passes(place, seconds=TTL.total_seconds() + 1)
        await place.plane._collect()
        await becomes(place, artifact, ArtifactState.DELETED)
        assert await objects.stat(place.nc, ARTIFACTS_BUCKET, artifact) is None

    at(test, QUICK)


def test_two_control_planes_build_one_specification_once(at) -> None:
    """§11, scenario 3: both jobs become READY over the same bytes."""

    async def test(place) -> None:
        other = await ControlPlane.open(place.nc, name="other")
        await other.start()
        try:
            made = await asyncio.gather(
                *(place.do("template.create", {"image": "oci:/images/demo", "memory_mb": 64 + n, "wait_s": 20}) for n in range(6))
            )
        finally:
            await other.close()
        found = [await place.get(Template, each["template_id"]) for each in made]
        assert {template.state for template in found} == {TemplateState.READY}
        (artifact,) = {template.artifact_id for template in found}
        known = await place.get(Artifact, artifact, SYSTEM_PROJECT)
        assert (known.generation, known.size_bytes, len(known.owners)) == (1, len(BYTES), 6)
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 1

    at(test)


def test_a_spec_change_is_another_artifact_and_a_wish_is_not(at) -> None:
    """§11, scenarios 1 and 2: no second build; another size is another artifact."""

    async def test(place) -> None:
        one = await artifact_of(place, await place.template(alias="one"))
        two = await artifact_of(place, await place.template(alias="two", cpu=2, ports=[80], env={"A": "b"}, nodes=["node-1"]))
        other = await artifact_of(place, await place.template(disk_mb=2048))
        assert (one.id == two.id, one.id == other.id) == (True, False)
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 2
        place.node.refuse = lambda order: Failure(code="node.broken", message="no") if order.verb == Verb.REPLICA_PREPARE else None
        await place.do("template.create", {"image": "oci:/images/demo", "memory_mb": 100})
        await eventually(lambda: len(place.node.did(Verb.REPLICA_PREPARE)) == 4)
        assert await state(place, one.id) is ArtifactState.READY, "another template's failure is none of it"

    at(test)


def test_partial_distribution_counts_every_node(at) -> None:
    """§11, scenario 4: three nodes, one of which cannot fetch the bytes."""

    async def test(place) -> None:
        for name in ("node-2", "node-3"):
            await place.do("node.enroll", {"node_id": name})
        async with ScriptedNode(place.nc, "node-2"), ScriptedNode(place.nc, "node-3") as third:
            await eventually(lambda: len(place.plane.control.fleet.healthy_nodes()) == 3)
            third.refuse = lambda order: Failure(code="node.broken", message="no") if order.verb == Verb.REPLICA_DISTRIBUTE else None
            template = await place.get(Template, await place.template())
            assert (template.state, template.ready, template.failed, template.total) == (TemplateState.PARTIALLY_READY, 2, 1, 3)

    at(test)
