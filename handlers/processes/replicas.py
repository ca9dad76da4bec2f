"""Making a template ready on its nodes, and telling the template when the last of them has settled.

Each replica goes its own way: distribute, prepare, ready or failed. A node that is gone fails its replica; the others go on.
"""

from __future__ import annotations

from datetime import datetime

from bus.store import Part
from domain.kernel.ids import replica_id
from domain.nodes.orders import Failure, ReplicaDistribute, ReplicaPrepare, Verb
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact
from domain.templates.job import Job, Operation, Phase
from domain.templates.replica import Replica, ReplicaState
from domain.templates.template import Template
from handlers.control import Control, Parts, part
from handlers.processes import template_build

SETTLED = frozenset({ReplicaState.READY, ReplicaState.FAILED})


async def pump(control: Control, project: str, job_id: str, artifact: Artifact) -> None:
    """Order what each target still needs; when all have settled, publish."""
    job = await control.get(Job, project, job_id)
    template = await control.get(Template, project, job.resource_id)
    replicas = [await _ensure(control, project, job, template, artifact, node) for node in job.targets]
    await template_build.advance(control, project, job_id, _phase(replicas))
    for replica in replicas:
        await _drive(control, project, job, template, artifact, replica)
    replicas = [await control.get(Replica, project, r.id) for r in replicas]
    if all(r.state in SETTLED and r.job_id == job.id for r in replicas):
        await _publish(control, project, job, template)


def _phase(replicas: list[Replica]) -> Phase:
    far = {
        ReplicaState.DISTRIBUTED,
        ReplicaState.SNAPSHOTTING,
        ReplicaState.READY,
        ReplicaState.FAILED,
    }  # said before they are told to prepare
    return Phase.CREATING_TEMPLATE if any(r.state in far for r in replicas) else Phase.DISTRIBUTING


async def _ensure(control: Control, project: str, job: Job, template: Template, artifact: Artifact, node: str) -> Replica:
    """The replica, assigned to this job; a redo takes an earlier one up again."""
    identifier = replica_id(template.id, node)
    cause = control.own_cause(project, "replica", identifier, "assign", job.id)
    resume = job.resume_phase or Phase.DISTRIBUTING

    def assign(replica: Replica | None) -> Replica:
        if replica is None:
            return Replica.create(identifier, cause.at, template.id, node, artifact.id, job.id)
        if replica.job_id != job.id:
            replica.redo(cause.at, job.id, artifact.id, resume)
        return replica

    return (await control.store.transact(Replica, project, identifier, assign, cause)).aggregate


async def _drive(control: Control, project: str, job: Job, template: Template, artifact: Artifact, replica: Replica) -> None:
    node = control.fleet.nodes.get(replica.node_id)
    if replica.state in SETTLED:
        return
    if node is None or not node.healthy:
        await fail(control, project, replica, job.id, f"node {replica.node_id} is not there")
        return
    if artifact.ref is None:
        return
    reference = artifact.ref.model_dump(mode="json")
    cause = control.own_cause(project, "replica", replica.id, replica.state, job.id)
    if replica.state in {ReplicaState.PENDING, ReplicaState.DISTRIBUTING}:
        verb, body = Verb.REPLICA_DISTRIBUTE, ReplicaDistribute(template_id=template.id, artifact=reference).model_dump(mode="json")
        await control.change(Replica, project, replica.id, cause, lambda r: r.begin_distribute(cause.at, job.id, job.attempt))
    else:
        recipe = {} if template.recipe is None else template.recipe.model_dump(mode="json")
        prepare = ReplicaPrepare(template_id=template.id, artifact=reference, recipe=recipe, driver=template.request.driver)
        verb, body = Verb.REPLICA_PREPARE, prepare.model_dump(mode="json")
        await control.change(Replica, project, replica.id, cause, lambda r: r.begin_prepare(cause.at, job.id))
    order = control.new_order(
        verb,
        project,
        ("replica", replica.id),
        body,
        key=template.id,
        attempt=job.attempt,
        salt=f"{job.id}-{artifact.generation}",
        deadline_s=control.deadlines.job_s,
    )
    await control.order(replica.node_id, order)


async def fail(control: Control, project: str, replica: Replica, job_id: str, error: str) -> None:
    """A replica that will not become ready in this job."""
    preparing = replica.state in {ReplicaState.DISTRIBUTED, ReplicaState.SNAPSHOTTING}
    phase = Phase.SNAPSHOTTING if preparing else Phase.DISTRIBUTING
    cause = control.own_cause(project, "replica", replica.id, "fail", job_id)
    await control.change(Replica, project, replica.id, cause, lambda r: r.fail(cause.at, job_id, phase, error, cleanup_required=True))


async def _publish(control: Control, project: str, job: Job, template: Template) -> None:
    """Alias, template and job in one commit: whoever sees READY can use the alias (reference/cubesandbox.md §4.5)."""
    await template_build.advance(control, project, job.id, Phase.REGISTERING)
    every = [
        await control.get(Replica, project, replica_id(template.id, n)) for n in sorted(control.fleet.by_template.get(template.id, {}))
    ]
    ready = [r for r in every if r.state is ReplicaState.READY]
    failed = [r for r in every if r.state is ReplicaState.FAILED]
    error = failed[0].last_error if failed else None
    cause = control.own_cause(project, "template", template.id, "publish", job.id)
    alias = await _due_alias(control, project, job, template) if ready else None
    result = {"template_id": template.id, "ready": len(ready), "failed": len(failed), "total": len(every)}

    def settle(t: Template) -> None:
        t.settle(cause.at, job.id, len(ready), len(failed), len(every), error)
        if alias is not None:
            t.alias_claimed(cause.at, alias)

    def finish(j: Job) -> None:
        if ready:
            j.succeed(cause.at, result)
        else:
            j.fail(cause.at, None, Failure(code="template.no-ready-replica", message=error or "no node got it"))

    parts: Parts = [part(Template, project, template.id, settle), part(Job, project, job.id, finish)]
    if alias is not None:
        parts += await _alias(control, project, alias, template.id, cause.at)
    await control.store.transact_many(parts, cause)


async def _due_alias(control: Control, project: str, job: Job, template: Template) -> str | None:
    """The name that the template gets now. A redo gives it one that its failed creation could not, unless another one has it meanwhile."""
    if template.alias is None or template.alias_held:
        return None
    holder = await control.find(Alias, project, template.alias)
    free = holder is None or holder.template_id is None
    return template.alias if free or job.operation in {Operation.CREATE, Operation.COMMIT} else None


async def _alias(control: Control, project: str, name: str, template_id: str, at: datetime) -> Parts:
    """The alias goes to the new template, and its former holder knows that it lost it."""
    alias = await control.find(Alias, project, name)

    def claim(found: Alias | None) -> Alias:
        if found is None:
            return Alias.create(name, at, template_id)
        found.claim(at, template_id)
        return found

    parts: Parts = [Part(Alias, project, name, claim)]
    former = None if alias is None else alias.template_id
    if former is not None and former != template_id:
        parts.append(part(Template, project, former, lambda t: t.alias_lost(at, name)))
    return parts
