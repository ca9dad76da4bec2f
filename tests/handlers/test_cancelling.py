"""A job that somebody cancels ends, wherever it is, and leaves nothing unfinished (reference/cubesandbox.md §1.5, §2.2)."""

from __future__ import annotations

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.orders import Verb
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, JobState
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template, TemplateState

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("verb", [Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD, Verb.REPLICA_DISTRIBUTE, Verb.REPLICA_PREPARE])
def test_a_creation_that_is_cancelled_fails_with_all_that_it_had_begun_and_can_be_deleted(at, verb: Verb) -> None:
    async def test(place) -> None:
        place.node.hold = lambda order: order.verb == verb
        made = await place.do("template.create", {"image": "oci:/images/demo"})
        (held,) = await eventually(lambda: place.node.did(verb))
        told = await place.do("job.cancel", {"job_id": made["job_id"]})
        assert told == {"status": "FAILED"} == await place.do("job.cancel", {"job_id": made["job_id"]}), "again is fine"
        job = await place.get(Job, made["job_id"])
        assert (job.state, job.failure.code) == (JobState.FAILED, "job.cancelled")
        assert (await place.get(Template, made["template_id"])).state is TemplateState.FAILED
        await eventually(lambda: nothing_unfinished(place, job))
        await eventually(lambda: (held.process, held.process_id) in called_off(place))
        place.node.hold = lambda order: False
        await place.node.answer(held)
        await place.do("template.delete", {"template": made["template_id"], "wait_s": 10})
        assert (await place.get(Template, made["template_id"])).state is TemplateState.DELETED
        assert await place.template(), "the next one is not hindered"

    def called_off(place) -> list[tuple[str, str]]:
        """What the node was told to stop: the order that it has in hand."""
        return [(order.body["process"], order.body["process_id"]) for order in place.node.did(Verb.ORDER_CANCEL)]

    async def nothing_unfinished(place, job: Job) -> bool:
        artifact = await place.get(Artifact, job.facts.get("artifact_id", "rfs-" + "0" * 24), SYSTEM_PROJECT)
        replica = await place.get(Replica, replica_id(job.resource_id, "node-1"))
        built = artifact is None or artifact.state is not ArtifactState.BUILDING
        return built and (replica is None or replica.state is ReplicaState.FAILED)

    at(test)


def test_a_redo_that_is_cancelled_leaves_the_template_as_its_replicas_are_now(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.hold = lambda order: order.verb == Verb.REPLICA_PREPARE
        again = await place.do("template.redo", {"template": template, "mode": "ALL"})
        await eventually(lambda: place.node.did(Verb.REPLICA_PREPARE)[1:])
        await place.do("job.cancel", {"job_id": again["job_id"]})
        await eventually(lambda: has_failed(place, template))
        place.node.hold = lambda order: False
        third = await place.do("template.redo", {"template": template, "mode": "FAILED_ONLY", "wait_s": 20})
        job = await place.get(Job, third["job_id"])
        assert (job.attempt, job.retry_of, job.state) == (3, again["job_id"], JobState.READY)
        assert (await place.get(Template, template)).state is TemplateState.READY

    async def has_failed(place, template: str) -> bool:
        return (await place.get(Template, template)).state is TemplateState.FAILED

    at(test)


def test_a_commit_can_be_cancelled_and_the_sandbox_goes_on(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_COMMIT
        made = await place.do("template.commit", {"sandbox_id": sandbox})
        await eventually(lambda: place.node.did(Verb.SANDBOX_COMMIT))
        await place.do("job.cancel", {"job_id": made["job_id"]})
        await place.do("template.delete", {"template": made["template_id"], "wait_s": 10})
        assert (await place.do("sandbox.exec", {"sandbox_id": sandbox, "cmd": ["true"]}))["exit_code"] == 0

    at(test)


def test_what_is_done_or_cannot_be_cut_off_is_not_cancelled(at) -> None:
    async def test(place) -> None:
        made = await place.do("template.create", {"image": "oci:/images/demo", "wait_s": 20})
        sandbox = await place.sandbox(made["template_id"])
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_SNAPSHOT
        taken = await place.do("snapshot.create", {"sandbox_id": sandbox})
        for job, code in ((made["job_id"], "job.illegal-state"), (taken["job_id"], "job.not-cancellable")):
            with pytest.raises(Refused) as refused:
                await place.do("job.cancel", {"job_id": job})
            assert refused.value.code == code

    at(test)
