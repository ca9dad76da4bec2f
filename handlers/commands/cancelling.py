"""``job.cancel``: end a job that makes a template ready. What it had begun is cleaned up by its process (handlers/processes/jobs.py)."""

from __future__ import annotations

from bus.endpoints import Reply
from domain.templates.commands import JobCancel
from domain.templates.job import Job
from domain.templates.template import Template
from handlers.control import Control, Parts, part
from handlers.dispatch import Asked


async def cancel(control: Control, asked: Asked, command: JobCancel) -> Reply:
    """Job and template in one commit. A job that has failed before stays as it is; one that is done is refused."""
    job = await control.get(Job, asked.project, command.job_id)
    at = asked.cause.at
    parts: Parts = [part(Job, asked.project, job.id, lambda j: j.cancel(at))]
    if job.resource_type == "template":
        parts.append(part(Template, asked.project, job.resource_id, lambda t: t.fail(at, job.id, "its job was cancelled")))
    await control.store.transact_many(parts, asked.cause)
    job = await control.get(Job, asked.project, job.id)
    return Reply({"status": job.state.value}, job.id, await control.position(Job, asked.project, job.id))
