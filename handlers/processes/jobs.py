"""Every job's pump: starts it, hands it to its operation, ends it when its lease is over without a sign of life."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from domain.templates.job import Job, JobState, Operation
from domain.templates.snapshot import Snapshot
from handlers.control import Control, part
from handlers.processes import clones, template_build

HOLDER: Final = "control-plane"
MAKING: Final = frozenset({Operation.CREATE, Operation.REDO, Operation.COMMIT, Operation.CONVERGE})
"""Jobs that make a template ready somewhere."""
Act = Callable[[Control, str, Job], Awaitable[None]]


class Mover(NamedTuple):
    """What moves the jobs of an operation on, and what ends one whose lease is over."""

    pump: Act
    expire: Act


MOVERS: Final = {
    **dict.fromkeys(MAKING, Mover(template_build.pump, template_build.expire)),
    Operation.CLONE: Mover(clones.pump, clones.expire),
}
"""The others are moved by the sandbox that they concern."""


async def pump(control: Control, project: str, job_id: str) -> None:
    """Move a job on. Snapshot and rollback jobs are moved by the sandbox they concern; here they only time out."""
    job = await control.find(Job, project, job_id)
    if job is not None and job.state is JobState.FAILED and job.operation in MAKING:
        await template_build.clean_up(control, project, job)
    if job is None or not job.active:
        return
    if job.state is JobState.PENDING:
        job = await _start(control, project, job)
    if control.clock() >= job.lease_until:
        await _expire(control, project, job)
        return
    if (mover := MOVERS.get(job.operation)) is not None:
        await mover.pump(control, project, job)


async def _start(control: Control, project: str, job: Job) -> Job:
    cause = control.own_cause(project, "job", job.id, "start")
    done = await control.change(Job, project, job.id, cause, lambda j: j.start(cause.at, HOLDER, control.deadlines.job_s))
    return done.aggregate


async def _expire(control: Control, project: str, job: Job) -> None:
    """End a job of which nothing was heard for the length of its lease, and what waits for it; unless it has been heard just now."""
    mover = MOVERS.get(job.operation)
    await (_expire_with_snapshot if mover is None else mover.expire)(control, project, job)


async def _expire_with_snapshot(control: Control, project: str, job: Job) -> None:
    """A snapshot that nobody has said to be taken has failed with its job, so that it can be deleted (reference/cubesandbox.md §5.6)."""
    cause = control.own_cause(project, "job", job.id, "expire", job.lease_until.isoformat())
    ended: list[bool] = []

    def end(j: Job) -> None:
        j.expire(cause.at)
        ended[:] = [not j.active]

    def follow(s: Snapshot) -> None:
        if ended[0]:
            s.fail(cause.at, job.id, "its node did not say in time that it was taken")

    await control.store.transact_many([part(Job, project, job.id, end), part(Snapshot, project, job.resource_id, follow)], cause)
