"""``template.*``: create, redo, adopt-baseline, delete. The work itself is a job's (handlers/processes/template_build.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

from bus import sealed
from bus.endpoints import Reply
from bus.store import Part
from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.sandboxes.sandbox import Sandbox
from domain.templates import commands as c
from domain.templates.image_ref import parse_image
from domain.templates.job import Job, Operation, next_attempt
from domain.templates.redo import ReplicaView, redo_targets, resume_phase
from domain.templates.replica import Replica
from domain.templates.targets import select_targets
from domain.templates.template import Template, TemplateRequest, TemplateState
from handlers.commands.aliases import acted_on, resolve_template
from handlers.control import Control, Parts, part, unchanged
from handlers.dispatch import Asked

CREATE_FIELDS = set(TemplateRequest.model_fields)


async def create(control: Control, asked: Asked, command: c.TemplateCreate) -> Reply:
    """A template and the job that makes it, in one commit. Raises ``template.unsealed-secret`` before anything is stored."""
    parse_image(command.image)
    if command.registry_secret is not None:
        sealed.recipients(command.registry_secret)
    template_id = ids.template_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    result = {"template_id": template_id, "job_id": job_id}
    if await control.find(Template, asked.project, template_id) is None:
        targets = select_targets(command.nodes, [n.node_id for n in control.fleet.healthy_nodes()])
        wanted = {k: v for k, v in command.model_dump(exclude_none=True).items() if k in CREATE_FIELDS}
        request = TemplateRequest(**wanted, registry_secret=command.registry_secret)
        parts: Parts = [
            Part(
                Template,
                asked.project,
                template_id,
                lambda t: t or Template.create(template_id, asked.cause.at, request, command.alias, job_id),
                lambda _: result,
            ),
            Part(Job, asked.project, job_id, lambda j: j or _create_job(asked, job_id, template_id, targets)),
        ]
        await control.store.transact_many(parts, asked.cause)
    else:
        await control.change(Template, asked.project, template_id, asked.cause, unchanged)
    return await job_reply(control, asked.project, job_id, result, template_id, command.wait_s)


def _create_job(asked: Asked, job_id: str, template_id: str, targets: tuple[str, ...]) -> Job:
    return Job.create(job_id, asked.cause.at, Operation.CREATE, "template", template_id, {}, 1, None, targets)


async def job_reply(control: Control, project: str, job_id: str, result: dict[str, Any], identifier: str, wait_s: float) -> Reply:
    """The reply of a command that started a job; waits until the job has ended if the caller wants that."""

    async def ended() -> bool:
        return not (await control.get(Job, project, job_id)).active

    settled = await control.waiting.until("job", project, job_id, ended, wait_s)
    job = await control.get(Job, project, job_id)
    if wait_s and job.failure is not None:
        failure = job.failure
        raise Refused(failure.code, failure.message, retryable=failure.retryable, details={**failure.details, **result})
    return Reply({**result, "settled": settled, "status": job.state.value}, identifier, await control.position(Job, project, job_id))


async def redo(control: Control, asked: Asked, command: c.TemplateRedo) -> Reply:
    """Make replicas again, on the nodes that the mode names (reference/cubesandbox.md §4.1)."""
    job_id = ids.job_id(asked.project, asked.command_id)
    known = await control.find(Job, asked.project, job_id)
    if known is None:
        template = await resolve_template(control, asked.project, command.template)
        last = await control.get(Job, asked.project, template.last_job)
        replicas = await _replicas(control, asked.project, template.id)
        healthy = [n.node_id for n in control.fleet.healthy_nodes()]
        targets = redo_targets(command.mode, command.nodes, replicas, healthy)
        resume = resume_phase(last.phase, last.state, replicas)

        def begin(job: Job | None) -> Job:
            return job or Job.create(
                job_id,
                asked.cause.at,
                Operation.REDO,
                "template",
                template.id,
                {"mode": command.mode},
                next_attempt(last.attempt),
                last.id,
                targets,
                resume,
            )

        parts: Parts = [
            part(Template, asked.project, template.id, lambda t: t.begin_job(asked.cause.at, job_id, command.mode)),
            Part(Job, asked.project, job_id, begin),
        ]
        await control.store.transact_many(parts, asked.cause)
    resource = template.id if known is None else known.resource_id
    return await job_reply(control, asked.project, job_id, {"job_id": job_id}, resource, command.wait_s)


async def commit(control: Control, asked: Asked, command: c.TemplateCommit) -> Reply:
    """Not possible yet: no driver can hand a running sandbox's disk to the builder. Said plainly, and nothing is recorded."""
    await control.get(Sandbox, asked.project, command.sandbox_id)
    raise Refused("template.commit-unsupported", "templates cannot be made from sandboxes yet")


async def _replicas(control: Control, project: str, template_id: str) -> list[ReplicaView]:
    views = []
    for node_id in sorted(control.fleet.by_template.get(template_id, {})):
        replica = await control.find(Replica, project, ids.replica_id(template_id, node_id))
        if replica is not None:
            views.append(
                ReplicaView(
                    node_id=node_id,
                    state=replica.state.value,
                    cleanup_required=replica.cleanup_required,
                    last_error_phase=replica.last_error_phase,
                )
            )
    return views


async def adopt_baseline(control: Control, asked: Asked, command: c.TemplateAdoptBaseline) -> Reply:
    """Bind replicas of unknown origin to what their nodes run now (reference/cubesandbox.md §6)."""
    template = await resolve_template(control, asked.project, command.template)
    updated, seq = 0, 0
    for node_id in sorted(control.fleet.by_template.get(template.id, {})):
        node = control.fleet.nodes.get(node_id)
        if node is None or not node.healthy:
            continue
        adopt = partial(Replica.adopt_baseline, at=asked.cause.at, versions=node.versions)
        done = await control.change(Replica, asked.project, ids.replica_id(template.id, node_id), asked.cause, adopt)
        updated += done.changed or done.replayed
        seq = max(seq, done.seq)
    return Reply({"updated": updated}, template.id, seq)


async def delete(control: Control, asked: Asked, command: c.TemplateDelete) -> Reply:
    """Refused while sandboxes of it live; ``force`` ends a running job first, never a sandbox (reference/cubesandbox.md §4.4)."""
    template = await acted_on(control, asked.project, command.template, asked.command_id)
    repeated = template is not None
    if template is None:
        template = await resolve_template(control, asked.project, command.template)
    users = [] if repeated else control.fleet.users_of(template.id)
    if users:
        raise Refused("template.in-use", f"{len(users)} sandboxes of template {template.id} live", details={"sandboxes": users[:20]})
    done = await control.change(
        Template, asked.project, template.id, asked.cause, lambda t: t.request_delete(asked.cause.at, command.force)
    )

    async def gone() -> bool:
        current = await control.get(Template, asked.project, template.id)
        return current.state in {TemplateState.DELETED, TemplateState.FAILED}

    settled = await control.waiting.until("template", asked.project, template.id, gone, command.wait_s)
    return Reply(
        {"settled": settled}, template.id, await control.position(Template, asked.project, template.id) if command.wait_s else done.seq
    )
