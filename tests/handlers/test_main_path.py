"""The main path through the control plane, with a node that does everything it is told."""

from __future__ import annotations

import asyncio

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Verb
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import Template, TemplateState

pytestmark = pytest.mark.quick


def test_a_template_is_made_from_an_image_and_its_alias_resolves(at) -> None:
    async def test(place) -> None:
        template_id = await place.template(alias="demo")
        template = await place.get(Template, template_id)
        assert template.state is TemplateState.READY
        assert (await place.get(Alias, "demo")).template_id == template_id
        artifact = await place.get(Artifact, template.artifact_id, SYSTEM_PROJECT)
        assert (artifact.state, list(artifact.owners)) == (ArtifactState.READY, [f"default/{template_id}"])

    at(test)


def test_a_job_goes_through_every_phase_and_a_node_that_prepares_says_when_it_snapshots(at) -> None:
    async def test(place) -> None:
        made = await place.do("template.create", {"image": "oci:/images/demo", "wait_s": 20})
        assert await phases(place, made["job_id"]) == [
            *("PULLING", "UNPACKING", "BUILDING_EXT4", "GENERATING_JSON"),
            *("DISTRIBUTING", "CREATING_TEMPLATE", "SNAPSHOTTING", "REGISTERING", "READY"),
        ]
        again = await place.do("template.redo", {"template": made["template_id"], "mode": "ALL", "wait_s": 20})
        assert await phases(place, again["job_id"]) == ["SNAPSHOTTING", "REGISTERING", "READY"]

    at(test)


async def phases(place, job: str) -> list[str]:
    """The phases that a job was in, in their order."""
    commits = await place.plane.control.store.read("default", "job", job)
    return list(dict.fromkeys(event["data"]["phase"] for commit in commits for event in commit.events if "phase" in event["data"]))


def test_two_templates_of_one_specification_at_once_build_it_once(at) -> None:
    async def test(place) -> None:
        await asyncio.gather(place.template(), place.template(memory_mb=64), place.template(cpu=2))
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 1

    at(test)


def test_a_sandbox_starts_runs_a_command_and_ends(at) -> None:
    async def test(place) -> None:
        sandbox_id = await place.sandbox(await place.template())
        assert (await place.get(Sandbox, sandbox_id)).state is SandboxState.RUNNING
        await eventually(lambda: _provisioned(place, sandbox_id))
        assert (await place.do("sandbox.exec", {"sandbox_id": sandbox_id, "cmd": ["true"]}))["stdout"] == "aGk="
        assert (await place.do("sandbox.pause", {"sandbox_id": sandbox_id, "wait_s": 10}))["state"] == "PAUSED"
        assert (await place.do("sandbox.resume", {"sandbox_id": sandbox_id, "wait_s": 10}))["state"] == "RUNNING"
        assert (await place.do("sandbox.stop", {"sandbox_id": sandbox_id, "wait_s": 10}))["state"] == "DEAD"

    at(test)


async def _provisioned(place, sandbox_id: str) -> bool:
    """The sandbox runs one append before its saga is recorded, which may then not even have been begun."""
    saga = await place.get(Provisioning, sandbox_id)
    return saga is not None and saga.state.value == "COMPLETED"


def test_a_start_whose_record_was_interrupted_is_recorded_when_the_report_comes_again(at, monkeypatch) -> None:
    """The sandbox's start is one append and the saga's record another; between them the control plane may die."""
    from handlers.reporting import sandboxes  # noqa: PLC0415 - only here

    real, tries = sandboxes._record, []

    async def first_fails(*arguments) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Refused("bus.unavailable", "gone", retryable=True)
        await real(*arguments)

    monkeypatch.setattr(sandboxes, "_record", first_fails)

    async def test(place) -> None:
        sandbox_id = await place.sandbox(await place.template())
        await eventually(lambda: _provisioned(place, sandbox_id))
        assert len(tries) == 2
        commits = await place.plane.control.store.read("default", "sandbox", sandbox_id)
        assert [e["type"] for commit in commits for e in commit.events] == ["sandbox.created", "sandbox.started"]

    at(test)


def test_a_report_that_overtakes_the_beginning_of_its_saga_begins_it(at, monkeypatch) -> None:
    from handlers.processes import sandboxes  # noqa: PLC0415 - only here

    real, held = sandboxes._begin, asyncio.Event()

    async def late(*arguments) -> int:
        await held.wait()
        return await real(*arguments)

    monkeypatch.setattr(sandboxes, "_begin", late)

    async def test(place) -> None:
        sandbox_id = await place.sandbox(await place.template())
        await eventually(lambda: _provisioned(place, sandbox_id))
        held.set()
        commits = await place.plane.control.store.read("default", "provisioning", sandbox_id)
        assert next(e["type"] for commit in commits for e in commit.events) == "provisioning.begun"
        assert (await place.do("sandbox.delete", {"sandbox_id": sandbox_id, "wait_s": 10}))["state"] == "DEAD"
        assert (await place.get(Provisioning, sandbox_id)).state.value == "COMPLETED"

    at(test)


def test_a_snapshot_is_taken_rolled_back_to_and_cloned_from(at) -> None:
    async def test(place) -> None:
        sandbox_id = await place.sandbox(await place.template())
        taken = await place.do("snapshot.create", {"sandbox_id": sandbox_id, "name": "s", "wait_s": 10})
        back = await place.do("sandbox.rollback", {"sandbox_id": sandbox_id, "snapshot_id": taken["snapshot_id"], "wait_s": 10})
        assert back["generation"] == 1
        clones = (await place.do("sandbox.clone", {"sandbox_id": sandbox_id, "count": 3, "wait_s": 10}))["sandbox_ids"]
        assert [(await place.get(Sandbox, clone)).state for clone in clones] == [SandboxState.RUNNING] * 3
        for sandbox in [sandbox_id, *clones]:
            await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
        await place.do("snapshot.delete", {"snapshot_id": taken["snapshot_id"], "wait_s": 10})
        assert (await place.get(Snapshot, taken["snapshot_id"])).state is SnapshotState.GONE

    at(test)


def test_a_template_in_use_is_not_deleted_and_an_unused_one_leaves_nothing(at) -> None:
    async def test(place) -> None:
        template_id = await place.template(alias="demo")
        sandbox_id = await place.sandbox("demo")
        with pytest.raises(Refused, match="live"):
            await place.do("template.delete", {"template": "demo"})
        await place.do("sandbox.delete", {"sandbox_id": sandbox_id, "wait_s": 10})
        await place.do("template.delete", {"template": "demo", "wait_s": 10})
        template = await place.get(Template, template_id)
        assert template.state is TemplateState.DELETED
        assert (await place.get(Alias, "demo")).template_id is None

        async def collected() -> bool:
            return (await place.get(Artifact, template.artifact_id, SYSTEM_PROJECT)).state is ArtifactState.DELETED

        assert await place.plane.control.waiting.until("artifact", SYSTEM_PROJECT, template.artifact_id, collected, 10)

    at(test)


def test_a_stale_template_refuses_sandboxes_until_it_is_made_again(at) -> None:
    async def test(place) -> None:
        template_id = await place.template(alias="demo")
        place.node.versions = place.node.versions.model_copy(update={"guest_image": "2"})
        assert (await place.do("compat.rescan", {"all": True}))["changed"] == 1
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.create", {"template": "demo"})
        assert (refused.value.code, refused.value.details) == ("template.stale-needs-redo", {"nodes": ["node-1"]})
        await place.do("template.redo", {"template": template_id, "mode": "ALL", "wait_s": 10})
        await place.sandbox("demo")

    at(test)
