"""``template.*``: create, commit, redo, adopt-baseline, set-compat-policy, delete.

The work itself is a job's (handlers/processes/template_build.py).
"""

from __future__ import annotations

import asyncio
from functools import partial

from bus import sealed
from bus.endpoints import Reply
from bus.store import Part
from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.sandboxes.sandbox import Sandbox
from domain.templates import commands as c
from domain.templates.image_ref import parse_image
from domain.templates.job import Job, Operation
from domain.templates.replica import Replica
from domain.templates.targets import first_targets, select_targets
from domain.templates.template import Template, TemplateRequest, TemplateState
from handlers.commands.aliases import acted_on, resolve_template
from handlers.commands.jobs import job_reply, once
from handlers.commands.snapshots import storage_gate
from handlers.control import Control, Parts
from handlers.dispatch import Asked
from handlers.processes import commits, removal
from handlers.processes.attempts import another_attempt

CREATE_FIELDS = set(TemplateRequest.model_fields)


async def create(control: Control, asked: Asked, command: c.TemplateCreate) -> Reply:
    """A template and the job that makes it, in one commit. Raises ``template.unsealed-secret`` before anything is stored."""
    template_id = ids.template_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    result = {"template_id": template_id, "job_id": job_id}
    await once(control, asked, Template, template_id, partial(_creation, control, asked, command, template_id, job_id))
    return await job_reply(control, asked, job_id, result, template_id, command.wait_s)


async def _creation(control: Control, asked: Asked, command: c.TemplateCreate, template_id: str, job_id: str) -> Parts:
    parse_image(command.image)
    if command.registry_secret is not None:
        sealed.recipients(command.registry_secret)
    targets = select_targets(command.nodes, [n.node_id for n in control.fleet.healthy_nodes()])
    targets = first_targets(targets, command.max_replicas, control.fleet.burden)
    wanted = {k: v for k, v in command.model_dump(exclude_none=True).items() if k in CREATE_FIELDS}
    request = TemplateRequest(**wanted, registry_secret=command.registry_secret)
    at, result = asked.cause.at, {"template_id": template_id, "job_id": job_id}
    return [
        Part(
            Template,
            asked.project,
            template_id,
            lambda t: t or Template.create(template_id, at, request, command.alias, job_id),
            lambda _: result,
        ),
        Part(Job, asked.project, job_id, lambda j: j or Job.create(job_id, at, Operation.CREATE, "template", template_id, targets=targets)),
    ]


async def redo(control: Control, asked: Asked, command: c.TemplateRedo) -> Reply:
    """Make replicas again, on the nodes that the mode names (reference/cubesandbox.md §4.1)."""
    job_id = ids.job_id(asked.project, asked.command_id)
    await once(control, asked, Job, job_id, partial(_another_attempt, control, asked, command, job_id))
    job = await control.get(Job, asked.project, job_id)
    return await job_reply(control, asked, job_id, {"job_id": job_id}, job.resource_id, command.wait_s)


async def _another_attempt(control: Control, asked: Asked, command: c.TemplateRedo, job_id: str) -> Parts:
    template = await resolve_template(control, asked.project, command.template)
    return await another_attempt(control, asked.project, template, asked.cause.at, job_id, command.mode, command.nodes)


async def commit(control: Control, asked: Asked, command: c.TemplateCommit) -> Reply:
    """A template of what a sandbox's disk is now, and the job that makes it, in one commit (reference/cubesandbox.md §4.2)."""
    template_id = ids.template_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    result = {"template_id": template_id, "job_id": job_id}
    await once(control, asked, Template, template_id, partial(_committing, control, asked, command, template_id, job_id))
    return await job_reply(control, asked, job_id, result, template_id, command.wait_s)


async def _committing(control: Control, asked: Asked, command: c.TemplateCommit, template_id: str, job_id: str) -> Parts:
    sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
    sandbox.require_disk()
    storage_gate(control, sandbox.node_id)
    source = await control.get(Template, asked.project, sandbox.spec.template_id)
    request = commits.request_of(sandbox, source)
    at, targets, result = asked.cause.at, commits.targets(control, request), {"template_id": template_id, "job_id": job_id}

    def job(known: Job | None) -> Job:
        return known or Job.create(job_id, at, Operation.COMMIT, "template", template_id, targets=targets, sandbox_id=sandbox.id)

    return [
        Part(
            Template,
            asked.project,
            template_id,
            lambda t: t or Template.create(template_id, at, request, command.alias, job_id),
            lambda _: result,
        ),
        Part(Job, asked.project, job_id, job),
    ]


async def adopt_baseline(control: Control, asked: Asked, command: c.TemplateAdoptBaseline) -> Reply:
    """Bind replicas of unknown origin to what their nodes run now (reference/cubesandbox.md §6)."""
    template = await resolve_template(control, asked.project, command.template)
    updated, seq = 0, 0
    for node_id in sorted(control.fleet.by_template.get(template.id, {})):
        node = control.fleet.nodes.get(node_id)
        if node is None or not node.healthy:
            continue
        adopt = partial(Replica.adopt_baseline, at=asked.cause.at, versions=node.versions, policy=template.compat_policy)
        done = await control.change(Replica, asked.project, ids.replica_id(template.id, node_id), asked.cause, adopt)
        updated += done.changed or done.replayed
        seq = max(seq, done.seq)
    return Reply({"updated": updated}, template.id, seq)


async def set_compat_policy(control: Control, asked: Asked, command: c.TemplateSetCompatPolicy) -> Reply:
    """Judge its replicas otherwise from now on; what is placed after the reply is placed by it, here at least."""
    template = await acted_on(control, asked.project, command.template, asked.command_id)
    template = template or await resolve_template(control, asked.project, command.template)
    change = partial(Template.set_compat_policy, at=asked.cause.at, policy=command.policy)
    done = await control.change(Template, asked.project, template.id, asked.cause, change)
    return Reply({"template_id": template.id, "policy": command.policy.value}, template.id, done.seq)


async def delete(control: Control, asked: Asked, command: c.TemplateDelete) -> Reply:
    """Refused while sandboxes of it live; ``force`` ends a running job first, never a sandbox (reference/cubesandbox.md §4.4)."""
    template = await acted_on(control, asked.project, command.template, asked.command_id)
    template = template or await resolve_template(control, asked.project, command.template)
    users = control.fleet.users_of(template.id)
    begin = partial(Template.begin_delete, at=asked.cause.at, command_id=asked.command_id, users=users, force=command.force)
    done = await control.change(Template, asked.project, template.id, asked.cause, begin)
    await _judged(control, asked, template.id, done.seq)

    async def gone() -> bool:
        current = await control.get(Template, asked.project, template.id)
        return current.state in {TemplateState.DELETED, TemplateState.FAILED}

    settled = await asked.wait(control, "template", template.id, gone, command.wait_s)
    seq = await control.position(Template, asked.project, template.id) if command.wait_s else done.seq
    return Reply({"settled": settled}, template.id, seq)


async def _judged(control: Control, asked: Asked, template_id: str, begun: int) -> None:
    """Raises ``template.in-use`` when the log has a user of the template that nobody here knew when the delete began."""
    try:
        async with asked.idle(), asyncio.timeout(control.deadlines.exec_slack_s):
            await control.fleet.reached(begun)
    except TimeoutError:
        raise Refused("bus.unavailable", "the log is not read at present; whether it is deleted will be decided", retryable=True) from None
    template = await removal.judge_delete(control, asked.project, template_id)
    refusal = None if template is None else template.delete_refusal(asked.command_id)
    if refusal is not None:
        raise refusal
