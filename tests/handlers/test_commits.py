"""Templates that are made of running sandboxes (reference/cubesandbox.md §4.2, and §4.1 for their redo)."""

from __future__ import annotations

import pytest
from support.node import DISK, ScriptedNode
from support.waiting import eventually

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Verb
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, JobState
from domain.templates.template import Template, TemplateState

pytestmark = pytest.mark.quick


async def committed(place, sandbox: str, **body) -> dict:
    return await place.do("template.commit", {"sandbox_id": sandbox, "wait_s": 20, **body})


async def artifact_of(place, template: str) -> Artifact:
    return await place.get(Artifact, (await place.get(Template, template)).artifact_id, SYSTEM_PROJECT)


async def settled(place, template: str) -> Template | None:
    found = await place.get(Template, template)
    return found if found.active_job is None else None


async def told(place, job: str) -> list[str]:
    """The phases that the job was in."""
    commits = await place.plane.control.store.read("default", "job", job)
    return list(dict.fromkeys(event["data"]["phase"] for commit in commits for event in commit.events if "phase" in event["data"]))


async def second_node(place) -> ScriptedNode:
    await place.do("node.enroll", {"node_id": "node-2"})
    return ScriptedNode(place.nc, "node-2")


def test_a_commit_makes_a_template_of_a_sandbox_and_says_how_far_it_is(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), env={"COLOUR": "blue"})
        made = await committed(place, sandbox, alias="warm")
        template = await place.get(Template, made["template_id"])
        assert (template.state, template.image_digest, template.recipe.env["COLOUR"]) == (TemplateState.READY, DISK, "blue")
        assert (await place.get(Alias, "warm")).template_id == template.id
        artifact = await artifact_of(place, template.id)
        assert (artifact.state, list(artifact.owners)) == (ArtifactState.READY, [f"default/{template.id}"])
        assert await told(place, made["job_id"]) == ["SNAPSHOTTING", "BUILDING_EXT4", "DISTRIBUTING", "CREATING_TEMPLATE", "REGISTERING"]
        assert await place.sandbox("warm") != sandbox, "sandboxes start from it"

    at(test)


def test_the_end_of_the_sandbox_and_of_its_template_does_not_hurt_what_was_committed(at) -> None:
    async def test(place) -> None:
        source = await place.template()
        sandbox = await place.sandbox(source)
        made = await committed(place, sandbox)
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
        await place.do("template.delete", {"template": source, "wait_s": 10})
        assert await place.sandbox(made["template_id"])
        again = await place.do("template.redo", {"template": made["template_id"], "mode": "ALL", "wait_s": 20})
        assert (await place.get(Job, again["job_id"])).state is JobState.READY

    at(test)


def test_a_redo_of_a_committed_template_stores_lost_bytes_again_from_a_node_that_has_them(at) -> None:
    async def test(place) -> None:
        made = await committed(place, await place.sandbox(await place.template()))
        artifact = await artifact_of(place, made["template_id"])
        await objects.delete(place.nc, ARTIFACTS_BUCKET, artifact.id)
        await place.do("template.redo", {"template": made["template_id"], "mode": "ALL", "wait_s": 20})
        builds = [order.body for order in place.node.did(Verb.ARTIFACT_BUILD) if order.body["artifact_id"] == artifact.id]
        assert [body["committed"] for body in builds] == [True, True]
        assert len(place.node.did(Verb.SANDBOX_COMMIT)) == 1, "the sandbox is asked once"
        assert await objects.present(place.nc, ARTIFACTS_BUCKET, artifact.id, artifact.sha256, artifact.size_bytes)

    at(test)


def test_a_redo_of_a_committed_template_that_nobody_has_any_more_says_so(at) -> None:
    async def test(place) -> None:
        made = await committed(place, await place.sandbox(await place.template()))
        artifact = await artifact_of(place, made["template_id"])
        await objects.delete(place.nc, ARTIFACTS_BUCKET, artifact.id)
        gone = Failure(code="template.origin-gone", message="no copy here")
        place.node.refuse = lambda order: gone if order.verb == Verb.ARTIFACT_BUILD else None
        with pytest.raises(Refused) as refused:
            await place.do("template.redo", {"template": made["template_id"], "mode": "ALL", "wait_s": 20})
        assert refused.value.code == "template.origin-gone"
        assert (await artifact_of(place, made["template_id"])).state is ArtifactState.FAILED

    at(test)


def test_a_commit_of_which_the_node_could_not_copy_the_disk_can_be_redone_while_the_sandbox_lives(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        full = Failure(code="artifact.build-failed", message="mke2fs: no")
        place.node.refuse = lambda order: full if order.verb == Verb.SANDBOX_COMMIT else None
        with pytest.raises(Refused) as refused:
            await committed(place, sandbox)
        template = await eventually(lambda: settled(place, refused.value.details["template_id"]))
        assert (refused.value.code, template.state) == ("artifact.build-failed", TemplateState.FAILED)
        place.node.refuse = lambda order: None
        again = await place.do("template.redo", {"template": template.id, "mode": "ALL", "wait_s": 20})
        job = await place.get(Job, again["job_id"])
        assert (job.attempt, job.retry_of, job.state) == (2, template.last_job, JobState.READY)
        assert (await place.get(Template, template.id)).state is TemplateState.READY

    at(test)


def test_a_redo_of_a_failed_commit_after_the_sandboxs_end_is_told_why(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        place.node.refuse = lambda order: Failure(code="node.broken", message="no") if order.verb == Verb.SANDBOX_COMMIT else None
        with pytest.raises(Refused) as refused:
            await committed(place, sandbox)
        template = (await eventually(lambda: settled(place, refused.value.details["template_id"]))).id
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
        with pytest.raises(Refused) as refused:
            await place.do("template.redo", {"template": template, "mode": "ALL", "wait_s": 20})
        assert refused.value.code == "sandbox.illegal-state"
        await place.do("template.delete", {"template": template, "wait_s": 10})
        assert (await place.get(Template, template)).state is TemplateState.DELETED

    at(test)


def test_two_commits_of_one_disk_share_its_artifact(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        one, two = await committed(place, sandbox), await committed(place, sandbox)
        assert one["template_id"] != two["template_id"]
        artifact = await artifact_of(place, one["template_id"])
        assert sorted(artifact.owners) == sorted(f"default/{made['template_id']}" for made in (one, two))
        assert artifact.generation == 1

    at(test)


def test_what_a_commit_left_on_its_node_is_known_also_when_its_job_was_over_by_then(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_COMMIT
        made = await place.do("template.commit", {"sandbox_id": sandbox})
        order = (await eventually(lambda: place.node.did(Verb.SANDBOX_COMMIT)))[0]
        await place.do("template.delete", {"template": made["template_id"], "force": True, "wait_s": 10})
        await place.node.answer(order)
        left = await eventually(lambda: one_that_failed(place))
        assert (left.owners, list(left.placements)) == ({}, ["node-1"])
        collected = await place.do("artifact.collect", {})
        assert collected["deleted"] == [left.id]
        await eventually(lambda: place.node.did(Verb.ARTIFACT_REMOVE))

    async def one_that_failed(place) -> Artifact | None:
        for identifier in sorted(place.plane.control.fleet.artifacts):
            found = await place.get(Artifact, identifier, SYSTEM_PROJECT)
            if found.state is ArtifactState.FAILED:
                return found
        return None

    at(test)


def test_a_committed_template_goes_to_every_node(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        async with await second_node(place):
            await eventually(lambda: len(place.plane.control.fleet.healthy_nodes()) == 2)
            template = await place.get(Template, (await committed(place, sandbox))["template_id"])
            assert (template.state, template.ready, template.total) == (TemplateState.READY, 2, 2)

    at(test)


def test_a_disk_that_a_guest_wrote_becomes_a_template_for_guests_alone(at) -> None:
    async def test(place) -> None:
        place.node.driver = "vm"
        await place.node.hello()
        made = await committed(place, await place.sandbox(await place.template()))
        assert (await place.get(Template, made["template_id"])).request.driver == "vm"

    at(test)
