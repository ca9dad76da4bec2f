"""The acceptance scenarios about templates (reference/cubesandbox.md §11), through the bus, on nodes that can be told to misbehave."""

from __future__ import annotations

from typing import Any

import pytest
from support.node import ScriptedNode
from support.places import nodes, refusal
from support.waiting import eventually
from support.watched import watched

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.orders import Failure, Order, Verb
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, JobState, Phase
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template, TemplateState
from handlers.control import Deadlines

pytestmark = pytest.mark.quick

BROKEN = Failure(code="node.broken", message="no")
QUICK = Deadlines(watchdog_s=0.05)


def breaks(node: ScriptedNode, *verbs: Verb) -> None:
    """From now on these orders fail there."""

    def refuse(order: Order) -> Failure | None:
        return BROKEN if order.verb in verbs else None

    node.refuse = refuse


async def fails(place, **body: Any) -> Job:
    """The job of a creation that comes to nothing."""
    refused = await refusal(place.template(**body))
    return await place.get(Job, refused.details["job_id"])


async def artifact_of(place, template: str) -> Artifact:
    return await place.get(Artifact, (await place.get(Template, template)).artifact_id, SYSTEM_PROJECT)


async def is_gone(place, artifact: str) -> bool:
    """The artifact and its bytes."""
    known = await place.get(Artifact, artifact, SYSTEM_PROJECT)
    return known.state is ArtifactState.DELETED and await objects.stat(place.nc, ARTIFACTS_BUCKET, artifact) is None


@pytest.mark.parametrize(
    ("verb", "phase", "resumes"),
    [
        (Verb.REPLICA_DISTRIBUTE, Phase.DISTRIBUTING, Phase.DISTRIBUTING),
        (Verb.REPLICA_PREPARE, Phase.CREATING_TEMPLATE, Phase.SNAPSHOTTING),
    ],
)
def test_a_creation_that_no_node_takes_keeps_nothing_that_it_built_and_can_be_redone(at, verb: Verb, phase: Phase, resumes: Phase) -> None:
    """§11, scenario 5: the bytes that the job built go; a redo builds them again, and goes on from where it was."""

    async def test(place) -> None:
        async with nodes(place, "node-2") as (second,):
            for node in (place.node, second):
                breaks(node, verb)
            job = await fails(place)
            assert (job.state, job.phase, job.failure.code) == (JobState.FAILED, phase, "template.no-ready-replica")
            assert (await place.get(Template, job.resource_id)).state is TemplateState.FAILED
            artifact = (await artifact_of(place, job.resource_id)).id
            await eventually(lambda: is_gone(place, artifact))
            for node in (place.node, second):
                breaks(node)
            again = await place.do("template.redo", {"template": job.resource_id, "mode": "ALL", "wait_s": 20})
            redone = await place.get(Job, again["job_id"])
            assert (redone.resume_phase, redone.state, redone.attempt, redone.retry_of) == (resumes, JobState.READY, 2, job.id)
            known = await artifact_of(place, job.resource_id)
            assert (known.id, known.state, known.generation) == (artifact, ArtifactState.READY, 2)
            assert list(known.owners) == [f"default/{job.resource_id}"]
            assert set(known.placements) == {"node-1", "node-2"}
            await place.do("template.delete", {"template": job.resource_id, "wait_s": 10})
            await eventually(lambda: is_gone(place, artifact))

    at(test, QUICK)


def test_bytes_that_a_failed_creation_has_only_used_are_kept(at) -> None:
    """§11, scenario 5: a reused artifact is kept."""

    async def test(place) -> None:
        first = await place.template()
        breaks(place.node, Verb.REPLICA_DISTRIBUTE)
        job = await fails(place, memory_mb=64)
        assert job.phase is Phase.DISTRIBUTING
        known = await artifact_of(place, first)
        assert known.state is ArtifactState.READY
        assert await objects.check(place.nc, ARTIFACTS_BUCKET, known.id, known.sha256)
        breaks(place.node)
        await place.do("template.redo", {"template": job.resource_id, "mode": "ALL", "wait_s": 20})
        assert len(place.node.did(Verb.ARTIFACT_BUILD)) == 1, "nothing was built again"

    at(test)


def test_whoever_sees_ready_can_use_the_alias_and_only_a_template_that_works_takes_it(at, tmp_path) -> None:
    """§11, scenario 8."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            first = await place.template(alias="base")
            assert await resolved(w, await settled(place, first)) == first
            breaks(place.node, Verb.REPLICA_PREPARE)
            await fails(place, alias="base", memory_mb=64)
            assert await resolved(w, await place.plane.control.store.position()) == first, "a failed build takes nothing"
            breaks(place.node)
            second = await place.template(alias="base", memory_mb=96)
            assert await resolved(w, await settled(place, second)) == second
            assert [item["alias"] for item in await w.ask("get", "templates", id=first)] == [None]
            assert (await place.get(Alias, "base")).template_id == second
            box = await place.sandbox("base")
            await place.do("snapshot.create", {"sandbox_id": box, "name": "label", "wait_s": 5})
            assert (await refusal(place.do("sandbox.create", {"template": "label"}))).code == "template.not-found"

    async def settled(place, template: str) -> int:
        """Where the log says for the first time that it is READY."""
        commits = await place.plane.control.store.read("default", "template", template)
        return next(c.seq for c in commits for e in c.events if e["type"] == "template.settled" and e["data"]["status"] == "READY")

    async def resolved(w, seq: int) -> str:
        [item] = await w.ask("get", "templates", id="base", as_of=seq)
        assert item["status"] == "READY"
        return item["template_id"]

    at(test)


def test_each_mode_of_a_redo_makes_what_it_says(at) -> None:
    """§11, scenario 9: one replica is ready, one failed to boot, and one node has something to clean up."""

    async def test(place) -> None:
        async with nodes(place, "node-2", "node-3") as (second, third):
            breaks(second, Verb.REPLICA_PREPARE)
            breaks(third, Verb.REPLICA_DISTRIBUTE)
            template = await place.template()
            states = [await place.get(Replica, replica_id(template, f"node-{n}")) for n in (1, 2, 3)]
            assert [(r.state.value, r.cleanup_required) for r in states] == [("READY", False), ("FAILED", True), ("FAILED", True)]
            assert await redone(place, template, "ALL") == ("node-1", "node-2", "node-3")
            assert await redone(place, template, "NODES", "node-1") == ("node-1",)
            assert await redone(place, template, "FAILED_ONLY") == ("node-2", "node-3")
            assert await redone(place, template, "FAILED_NODES", "node-1", "node-2") == ("node-2",)
            before = await place.plane.control.store.position()
            none = await refusal(redone(place, template, "FAILED_NODES", "node-1"))
            assert none.code == "template.no-failed-replicas"
            unknown = await refusal(redone(place, template, "NODES", "node-1", "nowhere"))
            assert (unknown.code, unknown.details) == ("node.not-found", {"nodes": ["nowhere"]})
            assert await place.plane.control.store.position() == before, "a refusal changes nothing"
            breaks(second)
            breaks(third)
            assert await redone(place, template, "FAILED_ONLY") == ("node-2", "node-3")
            assert (await place.get(Template, template)).state is TemplateState.READY

    async def redone(place, template: str, mode: str, *on: str) -> tuple[str, ...]:
        made = await place.do("template.redo", {"template": template, "mode": mode, "nodes": on, "wait_s": 20})
        return (await place.get(Job, made["job_id"])).targets

    at(test)


def test_a_redo_takes_up_the_work_where_the_last_attempt_ended(at) -> None:
    """§11, scenario 10."""

    async def test(place) -> None:
        async with nodes(place, "node-2") as (second,):
            breaks(place.node, Verb.IMAGE_RESOLVE)
            breaks(second, Verb.IMAGE_RESOLVE)
            never = await fails(place)
            assert never.phase is Phase.PULLING
            refused = await refusal(redone(place, never.resource_id))
            assert refused.code == "template.not-pulled"
            breaks(place.node)
            breaks(second, Verb.REPLICA_PREPARE)
            made = await place.do("template.create", {"image": "oci:/images/demo", "wait_s": 20})
            first = await place.get(Job, made["job_id"])
            assert (first.state, (await place.get(Template, first.resource_id)).state.value) == (JobState.READY, "PARTIALLY_READY")
            again = await redone(place, first.resource_id)
            assert (again.resume_phase, again.attempt, again.retry_of) == (Phase.SNAPSHOTTING, 2, first.id)
            second.hold = lambda order: order.verb == Verb.REPLICA_PREPARE
            held = await place.do("template.redo", {"template": first.resource_id, "mode": "FAILED_ONLY"})
            refused = await refusal(redone(place, first.resource_id))
            assert (refused.code, refused.details["job_id"]) == ("template.attempt-in-progress", held["job_id"])
            assert (await place.get(Job, held["job_id"])).attempt == 3

    async def redone(place, template: str) -> Job:
        made = await place.do("template.redo", {"template": template, "mode": "ALL", "wait_s": 20})
        return await place.get(Job, made["job_id"])

    at(test)


def test_what_a_delete_is_refused_for_and_what_it_does_not_mind(at) -> None:
    """§11, scenario 13. Ours: the log knows who lives on a template, so that no node has to be asked, and no silence means "unused"."""

    async def test(place) -> None:
        place.node.hold = lambda order: order.verb == Verb.IMAGE_RESOLVE
        pending = (await place.do("template.create", {"image": "oci:/pending"}))["template_id"]
        assert (await refusal(place.do("template.delete", {"template": pending}))).code == "template.attempt-in-progress"
        place.node.hold = lambda order: False
        template = await place.template()
        box = await place.sandbox(template)
        used = await refusal(place.do("template.delete", {"template": template}))
        assert (used.code, used.details) == ("template.in-use", {"sandboxes": [box]})
        await place.node.lists({}, complete=False)
        breaks(place.node, Verb.IMAGE_RESOLVE)
        nowhere = (await fails(place)).resource_id
        breaks(place.node, Verb.REPLICA_PREPARE)
        failed = (await fails(place, memory_mb=64)).resource_id
        await place.plane._liveness.expired("node-1", place.plane.control.clock())
        await eventually(lambda: not place.plane.control.fleet.nodes["node-1"].online)
        assert (await refusal(place.do("template.delete", {"template": template}))).code == "template.in-use"
        for gone in (nowhere, failed):
            assert (await place.do("template.delete", {"template": gone, "wait_s": 10}))["settled"]
            assert (await place.get(Template, gone)).state is TemplateState.DELETED

    at(test, QUICK)


def test_a_forced_delete_ends_a_job_and_never_a_sandbox(at) -> None:
    """§11, scenario 14."""

    async def test(place) -> None:
        template = await place.template()
        await place.sandbox(template)
        place.node.hold = lambda order: order.verb in {Verb.REPLICA_PREPARE, Verb.IMAGE_RESOLVE}
        redo = await place.do("template.redo", {"template": template, "mode": "ALL"})
        await eventually(lambda: len(place.node.did(Verb.REPLICA_PREPARE)) == 2)
        before = await place.plane.control.store.position()
        refused = await refusal(place.do("template.delete", {"template": template, "force": True}))
        assert refused.code == "template.in-use"
        assert await place.plane.control.store.position() == before, "nothing is changed first"
        assert (await place.get(Job, redo["job_id"])).active
        stuck = await place.do("template.create", {"image": "oci:/stuck", "memory_mb": 64})
        await place.do("template.delete", {"template": stuck["template_id"], "force": True, "wait_s": 10})
        job = await place.get(Job, stuck["job_id"])
        assert (job.state, job.failure.code) == (JobState.FAILED, "template.deleted")
        assert (await place.get(Template, stuck["template_id"])).state is TemplateState.DELETED
        for name in ("tpl-" + "0" * 24, stuck["template_id"], "nothing"):
            assert (await refusal(place.do("template.delete", {"template": name, "force": True}))).code == "template.not-found"

    at(test)


def test_a_replica_says_how_far_it_is_and_why_it_is_no_further(at, tmp_path) -> None:
    """Every phase of a replica, as the view showed it when the log had got that far (appendix B)."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            breaks(place.node, Verb.REPLICA_PREPARE)
            job = await fails(place)
            breaks(place.node)
            await place.do("template.redo", {"template": job.resource_id, "mode": "ALL", "wait_s": 20})
            await place.do("template.delete", {"template": job.resource_id, "wait_s": 10})
            identifier = replica_id(job.resource_id, "node-1")
            commits = await place.plane.control.store.read("default", "replica", identifier)
            told = [await shown(w, job.resource_id, commit.seq) for commit in commits[:-1]]
            phases = list(dict.fromkeys(item["phase"] for item in told))
            assert phases == [state.value for state in ALL if state is not ReplicaState.REMOVED]
            assert {item["last_error_phase"] for item in told if item["phase"] == "FAILED"} == {"SNAPSHOTTING"}
            assert await w.ask("list", "replicas", template_id=job.resource_id) == []

    async def shown(w, template: str, seq: int) -> dict[str, Any]:
        [item] = await w.ask("list", "replicas", template_id=template, as_of=seq)
        return item

    at(test)


ALL = (
    *(ReplicaState.PENDING, ReplicaState.DISTRIBUTING, ReplicaState.DISTRIBUTED, ReplicaState.SNAPSHOTTING),
    *(ReplicaState.FAILED, ReplicaState.READY, ReplicaState.CLEANING, ReplicaState.REMOVED),
)
