"""Template from image or sandbox: resolve, build once per specification, distribute, prepare, register (reference/cubesandbox.md §3.3).

Read top to bottom it is the pipeline; each ``_step`` returns True when the next one may look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, TypeGuard

from bus import sealed
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, artifact_id, replica_id
from domain.nodes.orders import ArtifactBuild, Failure, ImageResolve, OrderCancel, Verb
from domain.sandboxes.sandbox import Sandbox
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.job import Job, Operation, Phase
from domain.templates.progress import rank
from domain.templates.recipe import recipe_of
from domain.templates.replica import Replica
from domain.templates.template import Template, TemplateState
from handlers.control import Control, Parts, part
from handlers.processes import commits, removal, replicas, stored

CALLED_OFF: Final = frozenset({"job.cancelled", "job.expired", "template.deleted"})
"""Why a job ends while nodes are perhaps still at work for it."""


async def pump(control: Control, project: str, job: Job) -> None:
    """Do what comes next for a CREATE, COMMIT or REDO job; a refusal for good ends it."""
    try:
        await _next(control, project, job)
    except Refused as refusal:
        if refusal.retryable:
            raise
        await fail(control, project, job, Failure(code=refusal.code, message=refusal.message, details=refusal.details))


async def _next(control: Control, project: str, job: Job) -> None:
    template = await control.get(Template, project, job.resource_id)
    if not await _resolved(control, project, job, template):
        return
    job = await control.get(Job, project, job.id)
    artifact = await _built(control, project, job, template)
    if artifact is None:
        return
    await _bound(control, project, job, template, artifact)
    await replicas.pump(control, project, job.id, artifact)


async def _resolved(control: Control, project: str, job: Job, template: Template) -> bool:
    """Which bytes does the image name now? Asked once; a redo keeps the answer of the first time.

    But for the egress CA: where the bytes have to be built again and the node has another one by now, it is asked for that
    (reference/cubesandbox.md §3.8: another CA is another artifact).
    """
    another_ca = job.facts.get("another_ca", False)
    if "digest" in job.facts and not another_ca:
        return True
    if not another_ca and template.image_digest is not None and template.artifact_id is not None:
        known = await control.find(Artifact, SYSTEM_PROJECT, template.artifact_id)
        baked = "" if known is None else known.spec.egress_ca
        await note(control, project, job.id, "resolved", digest=template.image_digest, config=template.image_config, egress_ca=baked)
        return True
    if template.committed:
        await commits.order(control, project, job, template)
        return False
    builder = await _builder(control, project, job, template)
    if builder is None:
        return False
    await advance(control, project, job.id, Phase.PULLING)
    request = template.request
    body = ImageResolve(
        image=request.image, egress_ca=request.egress_ca, registry_user=request.registry_user, registry_secret=request.registry_secret
    )
    order = control.new_order(
        Verb.IMAGE_RESOLVE,
        project,
        ("job", job.id),
        body.model_dump(mode="json"),
        key=job.id,
        attempt=tries(job),
        deadline_s=control.deadlines.job_s,
    )
    await control.order(builder, order)
    return False


async def _builder(control: Control, project: str, job: Job, template: Template) -> str | None:
    """The node that builds for this job: chosen once, chosen again only when it is gone or cannot open the registry's secret."""
    known = job.facts.get("builder")
    builders = able(control, template, job.facts.get("unreadable", ()))
    if known in builders:
        return str(known)
    if not builders:
        return None
    chosen = builders[0]
    await note(control, project, job.id, f"builder-{chosen}", builder=chosen)
    return chosen


def able(control: Control, template: Template, unreadable: Collection[str]) -> list[str]:
    """The nodes that can build it now, the best first; for ``unreadable`` ones the registry's secret turned out to be closed."""
    builders = [node.node_id for node in control.fleet.builders()]
    secret = template.request.registry_secret
    if secret is None:
        return builders
    may = sealed.recipients(secret).difference(unreadable)
    return [name for name in builders if name in may]


async def _built(control: Control, project: str, job: Job, template: Template) -> Artifact | None:
    """The artifact of this specification: found, awaited, or claimed and ordered. None while it is not there."""
    spec = ArtifactSpec(image_digest=job.facts["digest"], disk_mb=template.request.disk_mb, egress_ca=job.facts.get("egress_ca", ""))
    identifier = artifact_id(fingerprint(spec))
    if job.facts.get("artifact_id") != identifier:
        await note(control, project, job.id, f"artifact-{identifier}", artifact_id=identifier)
    artifact = await control.find(Artifact, SYSTEM_PROJECT, identifier)
    if artifact is not None and artifact.state is ArtifactState.READY:
        if artifact.job_id == job.id or _distributes(job) or await stored.usable(control, artifact):
            return artifact
        artifact = await control.get(Artifact, SYSTEM_PROJECT, identifier)
    if _built_by_another(artifact, job) and not await _abandoned(control, artifact, project, job):
        return None
    claim = await claimed(control, project, job, identifier, spec, artifact)
    if claim is None or claim.state is ArtifactState.READY:
        return claim
    builder = commits.holder(control, claim) if template.committed else await _builder(control, project, job, template)
    if builder is not None:
        await _order_build(control, project, job, template, claim, builder)
    return None


async def claimed(
    control: Control, project: str, job: Job, identifier: str, spec: ArtifactSpec, artifact: Artifact | None
) -> Artifact | None:
    """The artifact that is this job's to build now, or that has become READY meanwhile; None while another job builds it."""
    print_ = fingerprint(spec)
    generation = 0 if artifact is None else artifact.generation
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", identifier, "claim", job.id, tries(job), generation)

    def claim(found: Artifact | None) -> Artifact:
        if found is None:
            return Artifact.create(identifier, cause.at, print_, spec, job.id, project)
        found.claim(cause.at, print_, spec, job.id, project)
        return found

    try:
        return (await control.store.transact(Artifact, SYSTEM_PROJECT, identifier, claim, cause)).aggregate
    except Refused as refusal:
        if refusal.code == "artifact.building":
            return None
        raise


def _distributes(job: Job) -> bool:
    """Has it begun to hand the bytes out? From then on it is the nodes who find out whether they are right."""
    begins = job.resume_phase or (Phase.BUILDING_EXT4 if job.operation is Operation.COMMIT else Phase.GENERATING_JSON)
    return rank(job.operation, job.phase) > rank(job.operation, begins)


def _built_by_another(artifact: Artifact | None, job: Job) -> TypeGuard[Artifact]:
    return artifact is not None and artifact.state is ArtifactState.BUILDING and artifact.job_id != job.id


def tries(job: Job) -> int:
    """Which try of the image's resolution or build this is; a retryable failure begins the next one."""
    return int(job.facts.get("tries", 1))


async def _abandoned(control: Control, artifact: Artifact, project: str, job: Job) -> bool:
    """A build whose job has ended without an artifact will never end: free it for the next one. Who waits lives as long as who builds."""
    builder_job = await control.find(Job, artifact.project, artifact.job_id)
    if builder_job is not None and builder_job.active:
        until = builder_job.lease_until
        alive = control.own_cause(project, "job", job.id, "waits", until.isoformat())
        await control.change(Job, project, job.id, alive, lambda j: j.renew(alive.at, until))
        return False
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "expire", artifact.job_id)
    await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.expire_build(cause.at, artifact.job_id))
    return True


async def _order_build(control: Control, project: str, job: Job, template: Template, artifact: Artifact, builder: str) -> None:
    request = template.request
    body = ArtifactBuild(
        artifact_id=artifact.id,
        image=request.image,
        digest=job.facts["digest"],
        disk_mb=request.disk_mb,
        committed=template.committed,
        egress_ca=bool(job.facts.get("egress_ca")),
        egress_ca_sha256=job.facts.get("egress_ca", ""),
        registry_user=request.registry_user,
        registry_secret=request.registry_secret,
    )
    order = control.new_order(
        Verb.ARTIFACT_BUILD,
        project,
        ("job", job.id),
        body.model_dump(mode="json"),
        key=artifact.id,
        attempt=tries(job),
        salt=str(artifact.generation),
        deadline_s=control.deadlines.job_s,
    )
    await control.order(builder, order)


async def _bound(control: Control, project: str, job: Job, template: Template, artifact: Artifact) -> None:
    """The template knows its artifact and how to start; the artifact knows its owner, and a former one that it has none."""
    if template.artifact_id == artifact.id and (former := job.facts.get("former")) is not None:
        await _fail_build(control, former, job, "it is built with another egress CA")
        await removal.disown(control, former, f"{project}/{template.id}")
    if template.artifact_id == artifact.id and template.recipe is not None and f"{project}/{template.id}" in artifact.owners:
        return
    if template.artifact_id not in {None, artifact.id}:  # another egress CA: noted before it is forgotten
        await note(control, project, job.id, "former", former=template.artifact_id)
    own = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "own", template.id, artifact.generation)
    await asyncio.gather(
        advance(control, project, job.id, Phase.GENERATING_JSON),
        control.change(Artifact, SYSTEM_PROJECT, artifact.id, own, lambda a: a.add_owner(own.at, f"{project}/{template.id}")),
    )
    cause = control.own_cause(project, "template", template.id, "bind", job.id)
    config = job.facts.get("config") or artifact.image_config
    recipe = await commits.recipe(control, project, template) or recipe_of(config, template.request)

    def bind(t: Template) -> None:
        t.bind_artifact(cause.at, job.id, artifact.id, job.facts["digest"], config)
        t.set_recipe(cause.at, job.id, recipe)

    await control.change(Template, project, template.id, cause, bind)


async def advance(control: Control, project: str, job_id: str, phase: Phase) -> None:
    """Tell in the job how far it is; never backwards."""
    cause = control.own_cause(project, "job", job_id, "advance", phase)
    await control.change(Job, project, job_id, cause, lambda j: j.advance(cause.at, phase))


async def note(control: Control, project: str, job_id: str, what: str, **facts: object) -> None:
    """Remember in the job what was found out."""
    cause = control.own_cause(project, "job", job_id, "note", what)
    await control.change(Job, project, job_id, cause, lambda j: j.note(cause.at, **facts))


async def expire(control: Control, project: str, job: Job) -> None:
    """End a job whose lease is over, with its template and its build; nothing when it was heard just now and has a new lease."""
    cause = control.own_cause(project, "job", job.id, "expire", job.lease_until.isoformat())
    ended: list[Failure] = []

    def end(j: Job) -> None:
        j.expire(cause.at)
        ended[:] = [] if j.failure is None else [j.failure]

    def follow(t: Template) -> None:
        if ended:
            t.fail(cause.at, job.id, ended[0].message)

    parts: Parts = [part(Job, project, job.id, end), part(Template, project, job.resource_id, follow)]
    await control.store.transact_many(parts, cause)
    if ended:
        await _fail_artifact(control, job, ended[0])


async def _fail_artifact(control: Control, job: Job, failure: Failure) -> None:
    """The artifact that this job was building, if it was one."""
    if (identifier := job.facts.get("artifact_id")) is not None:
        await _fail_build(control, identifier, job, failure.message)


async def _fail_build(control: Control, identifier: str, job: Job, why: str) -> None:
    artifact = await control.find(Artifact, SYSTEM_PROJECT, identifier)
    if artifact is not None and artifact.state is ArtifactState.BUILDING and artifact.job_id == job.id:
        own = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "fail", job.id)
        await control.change(Artifact, SYSTEM_PROJECT, artifact.id, own, lambda a: a.fail_build(own.at, job.id, why))


async def clean_up(control: Control, project: str, job: Job) -> None:
    """What a job that failed had begun and not ended: its build, and the replicas that it was making. Whoever comes first does it."""
    failure = job.failure or Failure(code="internal", message="it failed")
    await _call_off(control, project, job)
    await _fail_artifact(control, job, failure)
    left = [replica for node in job.targets if (replica := await control.find(Replica, project, replica_id(job.resource_id, node)))]
    left = [replica for replica in left if replica.job_id == job.id and replica.state in replicas.UNDER_WAY]
    for replica in left:
        await replicas.fail(control, project, replica, job.id, failure.message)
    if left:
        await replicas.recount(control, project, job.resource_id, "cleaned", job.id)
    if job.operation is Operation.CREATE:
        await _reclaim(control, project, job)


async def _call_off(control: Control, project: str, job: Job) -> None:
    """Whoever still works for it stops, and leaves nothing; a node that has ended that work finds nothing to do."""
    if job.failure is None or job.failure.code not in CALLED_OFF:
        return
    work = [(str(job.facts["builder"]), "job", job.id)] if "builder" in job.facts else []
    if job.sandbox_id is not None and (sandbox := await control.find(Sandbox, project, job.sandbox_id)) is not None:
        work.append((sandbox.node_id, "job", job.id))
    for node in job.targets:
        replica = await control.find(Replica, project, replica_id(job.resource_id, node))
        if replica is not None and replica.job_id == job.id:
            work.append((node, "replica", replica.id))
    for node, process, identifier in work:
        if node in control.fleet.nodes and not control.fleet.nodes[node].evicted:
            attempt = job.attempt if process == "replica" else None  # another job may be at work on it by now
            body = OrderCancel(process=process, process_id=identifier, attempt=attempt).model_dump(mode="json")
            order = control.new_order(
                Verb.ORDER_CANCEL, project, (process, identifier), body, key=f"cancel-{job.id}-{identifier}", salt=f"{job.id}-{node}"
            )
            await control.order(node, order)


async def _reclaim(control: Control, project: str, job: Job) -> None:
    """A creation that came to nothing keeps no bytes that it has built itself; a redo builds them again (reference/cubesandbox.md §3.3)."""
    template = await control.get(Template, project, job.resource_id)
    identifier = job.facts.get("artifact_id")
    if identifier is None or template.last_job != job.id or template.state is not TemplateState.FAILED:
        return
    artifact = await control.find(Artifact, SYSTEM_PROJECT, identifier)
    if artifact is not None and artifact.state is ArtifactState.READY and artifact.job_id == job.id:
        await removal.disown(control, identifier, f"{project}/{template.id}")


async def fail(control: Control, project: str, job: Job, failure: Failure) -> None:
    """The job cannot go on: job, template and, if it was this job's build, artifact say so."""
    await _fail_artifact(control, job, failure)
    cause = control.own_cause(project, "job", job.id, "fail")
    parts: Parts = [
        part(Job, project, job.id, lambda j: j.fail(cause.at, None, failure)),
        part(Template, project, job.resource_id, lambda t: t.fail(cause.at, job.id, failure.message)),
    ]
    await control.store.transact_many(parts, cause)
