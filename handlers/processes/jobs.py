"""Every job's pump: starts it, hands it to its operation, ends it when its lease is over."""

from __future__ import annotations

from domain.nodes.orders import Failure
from domain.templates.job import Job, JobState, Operation
from handlers.control import Control
from handlers.processes import clones, template_build

HOLDER = "control-plane"


async def pump(control: Control, project: str, job_id: str) -> None:
    """Move a job on. Snapshot and rollback jobs are moved by the sandbox they concern; here they only time out."""
    job = await control.find(Job, project, job_id)
    if job is None or not job.active:
        return
    if job.state is JobState.PENDING:
        job = await _start(control, project, job)
    if control.clock() > job.lease_until:
        await end(control, project, job, Failure(code="job.expired", message=f"{job.phase} took too long", retryable=True))
        return
    match job.operation:
        case Operation.CREATE | Operation.REDO:
            await template_build.pump(control, project, job)
        case Operation.CLONE:
            await clones.pump(control, project, job)
        case _:
            pass


async def _start(control: Control, project: str, job: Job) -> Job:
    cause = control.own_cause(project, "job", job.id, "start")
    done = await control.change(Job, project, job.id, cause, lambda j: j.start(cause.at, HOLDER, control.deadlines.job_s))
    return done.aggregate


async def end(control: Control, project: str, job: Job, failure: Failure) -> None:
    """A job that cannot go on, and everything that waits for it."""
    if job.operation in {Operation.CREATE, Operation.REDO}:
        await template_build.fail(control, project, job, failure)
        return
    cause = control.own_cause(project, "job", job.id, "fail")
    await control.change(Job, project, job.id, cause, lambda j: j.fail(cause.at, None, failure))
