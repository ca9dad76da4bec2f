"""An artifact is its bytes: when those are gone or bad, whoever wants it again has it built again."""

from __future__ import annotations

import hashlib

import pytest
from support.node import BYTES
from support.waiting import eventually

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Verb
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.template import Template

pytestmark = pytest.mark.quick

SHA256 = hashlib.sha256(BYTES).hexdigest()


async def artifact_of(place, template: str) -> Artifact:
    return await place.get(Artifact, (await place.get(Template, template)).artifact_id, SYSTEM_PROJECT)


async def lose_description(place, artifact: str) -> None:
    await objects.delete(place.nc, ARTIFACTS_BUCKET, artifact)


async def lose_chunks(place, artifact: str) -> None:
    known = await objects.stat(place.nc, ARTIFACTS_BUCKET, artifact)
    await place.nc.jetstream().purge_stream(f"OBJ_{ARTIFACTS_BUCKET}", subject=f"$O.{ARTIFACTS_BUCKET}.C.{known.nuid}")


async def spoil_chunks(place, artifact: str) -> None:
    """As many chunks as before, with other bytes."""
    known = await objects.stat(place.nc, ARTIFACTS_BUCKET, artifact)
    await lose_chunks(place, artifact)
    await place.nc.jetstream().publish(f"$O.{ARTIFACTS_BUCKET}.C.{known.nuid}", BYTES[::-1])


def bad(sha256: str = SHA256, times: int = 1):
    """The first ``times`` orders to fetch an artifact find other bytes than those."""
    found = []

    def refuse(order):
        if order.verb != Verb.REPLICA_DISTRIBUTE or len(found) >= times:
            return None
        found.append(order)
        return Failure(code="object.corrupt", message="other bytes", details={"sha256": sha256})

    return refuse


@pytest.mark.parametrize("lose", [lose_description, lose_chunks])
def test_an_artifact_whose_bytes_are_gone_is_not_reused_but_built_again(at, lose) -> None:
    async def test(place) -> None:
        first = await artifact_of(place, await place.template())
        await place.template(memory_mb=64)
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 1, "the bytes were there"
        await lose(place, first.id)
        again = await artifact_of(place, await place.template(memory_mb=128))
        assert (again.id, again.state, again.generation) == (first.id, ArtifactState.READY, 2)
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 2
        assert await objects.check(place.nc, ARTIFACTS_BUCKET, first.id, SHA256)

    at(test)


def test_a_redo_builds_what_is_lost_too(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await lose_chunks(place, (await artifact_of(place, template)).id)
        await place.do("template.redo", {"template": template, "mode": "ALL", "wait_s": 10})
        assert (await artifact_of(place, template)).generation == 2

    at(test)


def test_bytes_that_a_node_found_bad_are_built_again_and_the_template_becomes_ready(at) -> None:
    async def test(place) -> None:
        reused = await artifact_of(place, await place.template())
        await spoil_chunks(place, reused.id)
        place.node.refuse = bad()
        again = await artifact_of(place, await place.template(memory_mb=64))
        assert (again.id, again.generation) == (reused.id, 2)
        assert await objects.check(place.nc, ARTIFACTS_BUCKET, reused.id, SHA256)

    at(test)


def test_a_node_that_calls_good_bytes_bad_loses_its_replica_and_nothing_else(at) -> None:
    async def test(place) -> None:
        reused = await artifact_of(place, await place.template())
        place.node.refuse = bad()
        with pytest.raises(Refused) as refused:
            await place.template(memory_mb=64)
        assert refused.value.code == "template.no-ready-replica"
        still = await place.get(Artifact, reused.id, SYSTEM_PROJECT)
        assert (still.state, still.generation) == (ArtifactState.READY, 1)

    at(test)


def test_a_node_that_wanted_the_bytes_of_an_earlier_build_gets_those_of_this_one(at) -> None:
    async def test(place) -> None:
        await place.template()
        place.node.refuse = bad("f" * 64)
        made = await place.do("template.create", {"image": "oci:/images/demo", "memory_mb": 64})
        await eventually(lambda: place.node.did(Verb.REPLICA_DISTRIBUTE)[1:])
        place.node.refuse = lambda order: None
        artifact = await eventually(lambda: bound(place, made["template_id"]))
        assert artifact.state is ArtifactState.READY, "no loss of these bytes"

    async def bound(place, template: str):
        found = await place.get(Template, template)
        return None if found.artifact_id is None else await artifact_of(place, template)

    at(test)
