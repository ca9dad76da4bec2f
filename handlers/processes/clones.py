"""Clones: when the passing snapshot is READY, one sandbox per id that was promised; then the snapshot is let go."""

from __future__ import annotations

from bus.store import Part
from domain.nodes.orders import Failure
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.sandboxes.spec import SandboxSpec
from domain.templates.job import Job, Phase
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Control, Parts, part
from handlers.processes.sandboxes import STARTING


async def pump(control: Control, project: str, job: Job) -> None:
    """Do what comes next for a CLONE job."""
    snapshot = await control.get(Snapshot, project, job.resource_id)
    if snapshot.state is SnapshotState.FAILED:
        await _end(control, project, job, Failure(code="snapshot.failed", message=snapshot.last_error or "the snapshot failed"))
        return
    if snapshot.state is not SnapshotState.READY:
        return
    source = await control.get(Sandbox, project, snapshot.sandbox_id)
    for clone in job.request["clones"]:
        await _create(control, project, source, snapshot, clone)
    clones = [await control.get(Sandbox, project, clone) for clone in job.request["clones"]]
    if any(c.state in STARTING for c in clones):
        return
    dead = [c for c in clones if c.state is SandboxState.DEAD and c.failure is not None]
    failure = dead[0].failure if dead else None
    await _end(control, project, job, failure)


async def _create(control: Control, project: str, source: Sandbox, snapshot: Snapshot, clone: str) -> None:
    if await control.find(Sandbox, project, clone) is not None:
        return
    cause = control.own_cause(project, "clone", clone)
    spec: SandboxSpec = source.spec.model_copy(update={"snapshot_id": snapshot.id, "snapshot_manifest": None, "name": "", "disks": ()})
    parts: Parts = [
        Part(Sandbox, project, clone, lambda s: s or Sandbox.create(clone, cause.at, spec, snapshot.node_id, source.ttl)),
        part(Snapshot, project, snapshot.id, lambda s: s.attach(cause.at, clone, snapshot.node_id, 0)),
    ]
    await control.store.transact_many(parts, cause)


async def expire(control: Control, project: str, job: Job) -> None:
    """Its time is over: the clones that are there go again, and the passing snapshot with them."""
    await _end(control, project, job, Failure(code="job.expired", message="the clones did not come up in time", retryable=True))


async def _end(control: Control, project: str, job: Job, failure: Failure | None) -> None:
    """All or nothing: if one clone failed, none stays."""
    clones = job.request["clones"]
    if failure is not None:
        for clone in clones:
            await _undo(control, project, clone)
    cause = control.own_cause(project, "job", job.id, "end")

    def finish(j: Job) -> None:
        if failure is None:
            j.succeed(cause.at, {"sandbox_ids": list(clones)})
        else:
            j.fail(cause.at, Phase.CLONING, failure)

    def let_go(s: Snapshot) -> None:
        s.fail(cause.at, job.id, failure)  # if it was never taken
        if s.state is not SnapshotState.GONE:
            s.request_delete(cause.at)

    await control.store.transact_many([part(Job, project, job.id, finish), part(Snapshot, project, job.resource_id, let_go)], cause)


async def _undo(control: Control, project: str, clone: str) -> None:
    if await control.find(Sandbox, project, clone) is not None:
        undo = control.own_cause(project, "clone", clone, "undo")
        await control.change(Sandbox, project, clone, undo, lambda s: s.request_delete(undo.at, undo.command))
