"""``egress_ca`` of a template: part of what its artifact is, and of what the builder is told (reference/cubesandbox.md §3.3, §3.8)."""

from __future__ import annotations

import pytest
from support.places import refusal
from support.waiting import eventually

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Verb
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job, JobState, Phase
from domain.templates.template import Template, TemplateState


def test_the_ca_makes_another_artifact_and_reaches_the_build(at) -> None:
    async def test(place) -> None:
        plain = await place.template()
        baked = await place.template(egress_ca=True)
        again = await place.template(egress_ca=True, memory_mb=64)
        artifacts = [(await place.get(Template, template)).artifact_id for template in (plain, baked, again)]
        assert artifacts[0] != artifacts[1] == artifacts[2]
        specs = [(await place.get(Artifact, artifact, SYSTEM_PROJECT)).spec.egress_ca for artifact in artifacts[:2]]
        assert specs == ["", "c" * 64]
        builds = [(order.body["egress_ca"], order.body["egress_ca_sha256"]) for order in place.node.did(Verb.ARTIFACT_BUILD)]
        assert builds == [(False, ""), (True, "c" * 64)]
        place.node.egress_ca = "d" * 64
        await place.do("template.redo", {"template": baked, "mode": "ALL", "wait_s": 10})
        assert (await place.get(Template, baked)).artifact_id == artifacts[1], "a redo keeps the bytes of the first time"
        rotated = await place.template(egress_ca=True)
        assert (await place.get(Template, rotated)).artifact_id not in artifacts

    at(test)


def test_bytes_that_are_built_again_get_the_ca_of_today(at) -> None:
    """Another CA is another artifact (§3.8); what was is collected, and the image is the one that it was."""

    async def test(place) -> None:
        template = await place.template(egress_ca=True)
        first = await place.get(Template, template)
        await objects.delete(place.nc, ARTIFACTS_BUCKET, first.artifact_id)
        place.node.egress_ca = "d" * 64
        changed = Failure(code="egress-ca.changed", message="egress-ca.pem is another one by now")
        place.node.refuse = lambda order: changed if order.body.get("egress_ca_sha256", "d" * 64) != "d" * 64 else None
        await place.do("template.redo", {"template": template, "mode": "ALL", "wait_s": 10})
        again = await place.get(Template, template)
        assert (again.state, again.image_digest) == (TemplateState.READY, first.image_digest)
        assert again.artifact_id != first.artifact_id
        assert (await place.get(Artifact, again.artifact_id, SYSTEM_PROJECT)).spec.egress_ca == "d" * 64

        async def collected() -> bool:
            return (await place.get(Artifact, first.artifact_id, SYSTEM_PROJECT)).state is ArtifactState.DELETED

        await eventually(collected)
        await place.do("template.delete", {"template": template, "wait_s": 10})

    at(test)


def test_a_builder_without_a_ca_fails_the_job_before_anything_is_pulled(at) -> None:
    """§11, scenario 6. Ours: a CA is baked in where that is asked for, so that without asking nothing is baked."""

    async def test(place) -> None:
        missing = Failure(code="egress-ca.missing", message="no egress-ca.pem on this node to bake in")
        place.node.refuse = lambda order: missing if order.verb == Verb.IMAGE_RESOLVE and order.body["egress_ca"] else None
        refused = await refusal(place.template(egress_ca=True))
        assert (refused.code, place.node.did(Verb.ARTIFACT_BUILD)) == ("egress-ca.missing", [])
        job = await place.get(Job, refused.details["job_id"])
        assert (job.state, job.phase, job.facts.get("artifact_id")) == (JobState.FAILED, Phase.PULLING, None)
        plain = await place.get(Template, await place.template(egress_ca=False))
        assert (await place.get(Artifact, plain.artifact_id, SYSTEM_PROJECT)).spec.egress_ca == ""

    at(test)


def test_only_true_and_false_say_whether_the_ca_is_baked_in(at) -> None:
    async def test(place) -> None:
        with pytest.raises(Refused) as refused:
            await place.do("template.create", {"image": "oci:/demo", "egress_ca": "corporate.pem"})
        assert (refused.value.code, list(refused.value.details)) == ("command.invalid", ["egress_ca"])

    at(test)
