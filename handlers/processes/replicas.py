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
from domain.templates.template import GONE, Template
from handlers.control import Control, Parts, part
from handlers.processes import template_build

SUPERSEDED = Failure(code="replica.superseded", message="another job makes this replica, or its template is going")
SETTLED = frozenset({ReplicaState.READY, ReplicaState.FAILED})
UNDER_WAY = frozenset({ReplicaState.PENDING, ReplicaState.DISTRIBUTING, ReplicaState.DISTRIBUTED, ReplicaState.SNAPSHOTTING})


async def pump(control: Control, project: str, job_id: str, artifact: Artifact) -> None:
    """Order what each target still needs; when all have settled, publish."""
    job = await control.get(Job, project, job_id)
    template = await control.get(Template, project, job.resource_id)
    if job.operation is Operation.CONVERGE and not await _still_wanted(control, project, job, template):
        return
    replicas = [await _ensure(control, project, job, template, artifact, node) for node in job.targets]
    await template_build.advance(control, project, job_id, _phase(replicas))
    for replica in replicas:
        await _drive(control, project, job, template, artifact, replica)
    replicas = [await control.get(Replica, project, r.id) for r in replicas]
    if all(r.state in SETTLED and r.job_id == job.id for r in replicas):
        await (_converged if job.operation is Operation.CONVERGE else _publish)(control, project, job, template)


def _phase(replicas: list[Replica]) -> Phase:
    """As far as the first of them is; one that never got the bytes is nowhere. Said before they are told to prepare."""
    far = {ReplicaState.DISTRIBUTED, ReplicaState.SNAPSHOTTING, ReplicaState.READY}
    reached = (r.state in far or (r.state is ReplicaState.FAILED and r.last_error_phase != Phase.DISTRIBUTING) for r in replicas)
    return Phase.CREATING_TEMPLATE if any(reached) else Phase.DISTRIBUTING


async def _ensure(control: Control, project: str, job: Job, template: Template, artifact: Artifact, node: str) -> Replica:
    """The replica, assigned to this job; a redo takes an earlier one up again."""
    identifier = replica_id(template.id, node)
    cause = control.own_cause(project, "replica", identifier, "assign", job.id)
    resume = (job.resume_phase if node in artifact.placements else None) or Phase.DISTRIBUTING

    def assign(replica: Replica | None) -> Replica:
        if replica is None:
            return Replica.create(identifier, cause.at, template.id, node, artifact.id, job.id)
        if replica.job_id != job.id:
            replica.redo(cause.at, job.id, artifact.id, resume)
        return replica

    return (await control.store.transact(Replica, project, identifier, assign, cause)).aggregate


async def _still_wanted(control: Control, project: str, job: Job, template: Template) -> bool:
    """A replica that somebody else has taken over, or whose template is going, is not this job's any more: then it ends."""
    replica = await control.find(Replica, project, replica_id(template.id, job.targets[0]))
    mine = replica is not None and replica.job_id == job.id
    taken = not mine and (
        "begun" in job.facts or (replica is not None and replica.state not in {ReplicaState.FAILED, ReplicaState.REMOVED})
    )
    if not taken and template.state not in GONE and not template.pending_deletes:
        if not mine:
            await template_build.note(control, project, job.id, "begun", begun=True)
        return True
    cause = control.own_cause(project, "job", job.id, "superseded")
    await control.change(Job, project, job.id, cause, lambda j: j.fail(cause.at, None, SUPERSEDED))
    return False


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
    fetching = replica.state in {ReplicaState.PENDING, ReplicaState.DISTRIBUTING}
    if fetching:
        verb, body = Verb.REPLICA_DISTRIBUTE, ReplicaDistribute(template_id=template.id, artifact=reference).model_dump(mode="json")
    else:
        recipe = {} if template.recipe is None else template.recipe.model_dump(mode="json")
        prepare = ReplicaPrepare(template_id=template.id, artifact=reference, recipe=recipe, driver=template.request.driver)
        verb, body = Verb.REPLICA_PREPARE, prepare.model_dump(mode="json")
    if not await _begin(control, project, job, replica, fetching=fetching):
        return
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


async def _begin(control: Control, project: str, job: Job, replica: Replica, *, fetching: bool) -> bool:
    """Note that the node gets the order; False when its answer, or a delete, has come meanwhile, so that it must not."""
    cause = control.own_cause(project, "replica", replica.id, replica.state, job.id)

    def begin(found: Replica) -> None:
        if found.state not in UNDER_WAY:
            return
        if fetching:
            found.begin_distribute(cause.at, job.id, job.attempt)
        else:
            found.begin_prepare(cause.at, job.id)

    return (await control.change(Replica, project, replica.id, cause, begin)).aggregate.state in UNDER_WAY


async def fail(control: Control, project: str, replica: Replica, job_id: str, error: str) -> None:
    """A replica that will not become ready in this job."""
    preparing = replica.state in {ReplicaState.DISTRIBUTED, ReplicaState.SNAPSHOTTING}
    phase = Phase.SNAPSHOTTING if preparing else Phase.DISTRIBUTING
    cause = control.own_cause(project, "replica", replica.id, "fail", job_id)
    await control.change(Replica, project, replica.id, cause, lambda r: r.fail(cause.at, job_id, phase, error, cleanup_required=True))


async def count(control: Control, project: str, template_id: str) -> tuple[int, int, int, str | None]:
    """Of all replicas of a template: ready, failed, all, and why the first that failed did."""
    every = [
        await control.get(Replica, project, replica_id(template_id, n)) for n in sorted(control.fleet.by_template.get(template_id, {}))
    ]
    failed = [r for r in every if r.state is ReplicaState.FAILED]
    ready = sum(r.state is ReplicaState.READY for r in every)
    return ready, len(failed), len(every), failed[0].last_error if failed else None


async def recount(control: Control, project: str, template_id: str, *why: str | int) -> None:
    """Tell the template what its replicas are now; while a job is at work on it, that job does it at its end."""
    ready, failed, total, error = await count(control, project, template_id)
    cause = control.own_cause(project, "template", template_id, "recount", *why)
    await control.change(Template, project, template_id, cause, lambda t: t.replicas_changed(cause.at, ready, failed, total, error))


async def _converged(control: Control, project: str, job: Job, template: Template) -> None:
    """The end of a job of convergence: its replica is settled one way or the other."""
    replica = await control.get(Replica, project, replica_id(template.id, job.targets[0]))
    await recount(control, project, template.id, job.id)
    cause = control.own_cause(project, "job", job.id, "converged")

    def finish(j: Job) -> None:
        if replica.state is ReplicaState.READY:
            j.succeed(cause.at, {"template_id": template.id, "node_id": replica.node_id})
        else:
            j.fail(cause.at, None, Failure(code="template.no-ready-replica", message=replica.last_error or "the node did not get it"))

    await control.change(Job, project, job.id, cause, finish)


async def _publish(control: Control, project: str, job: Job, template: Template) -> None:
    """Alias, template and job in one batch, and in the log in this order: whoever sees READY can use the alias (§4.5).

    When no replica is ready the job ends in the phase that none of them got beyond.
    """
    ready, failed, total, error = await count(control, project, template.id)
    if ready:
        await template_build.advance(control, project, job.id, Phase.REGISTERING)
    cause = control.own_cause(project, "template", template.id, "publish", job.id)
    alias = await _due_alias(control, project, job, template) if ready else None
    result = {"template_id": template.id, "ready": ready, "failed": failed, "total": total}

    def settle(t: Template) -> None:
        t.settle(cause.at, job.id, ready, failed, total, error)
        if alias is not None:
            t.alias_claimed(cause.at, alias)

    def finish(j: Job) -> None:
        if ready:
            j.succeed(cause.at, result)
        else:
            j.fail(cause.at, None, Failure(code="template.no-ready-replica", message=error or "no node got it"))

    parts: Parts = [] if alias is None else await _alias(control, project, alias, template.id, cause.at)
    parts += [part(Template, project, template.id, settle), part(Job, project, job.id, finish)]
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
