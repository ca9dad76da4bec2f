"""``snapshot.*``, ``sandbox.rollback`` and ``sandbox.clone``: what is done with a sandbox's past."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, cast

from bus.endpoints import Reply
from bus.store import Part
from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.sandboxes.commands import SandboxClone, SandboxRollback
from domain.sandboxes.sandbox import Sandbox
from domain.templates.commands import SnapshotCreate, SnapshotDelete, SnapshotExport
from domain.templates.job import Job, Operation
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.commands.jobs import job_reply, once
from handlers.control import Control, Parts, part
from handlers.dispatch import Asked

if TYPE_CHECKING:
    from domain.sandboxes.spec import DriverName


async def create(control: Control, asked: Asked, command: SnapshotCreate) -> Reply:
    """A snapshot, its job, and the sandbox's promise to do nothing else meanwhile, in one commit."""
    snapshot_id = ids.snapshot_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    taking = partial(
        _snapshot,
        control,
        asked,
        command.sandbox_id,
        snapshot_id,
        job_id,
        Operation.SNAPSHOT_CREATE,
        name=command.name,
        replicate=command.replicate,
    )
    await once(control, asked, Snapshot, snapshot_id, taking)
    result = {"snapshot_id": snapshot_id, "job_id": job_id}
    return await job_reply(control, asked, job_id, result, snapshot_id, command.wait_s)


def storage_gate(control: Control, node_id: str) -> None:
    """Nothing new is written on a node that is nearly full, or of which nobody knows (reference/cubesandbox.md §5.7)."""
    node = control.fleet.nodes.get(node_id)
    mode = "unknown" if node is None else node.storage_mode
    if mode not in {"healthy", "warn"}:
        raise Refused(
            "storage.blocked", f"the storage of node {node_id} is {mode}", retryable=True, details={"node": node_id, "mode": mode}
        )


async def _snapshot(
    control: Control,
    asked: Asked,
    sandbox_id: str,
    snapshot_id: str,
    job_id: str,
    operation: Operation,
    *,
    name: str = "",
    replicate: bool = False,
    request: dict[str, object] | None = None,
) -> Parts:
    """The three aggregates that a snapshot concerns."""
    sandbox = await control.get(Sandbox, asked.project, sandbox_id)
    storage_gate(control, sandbox.node_id)
    at = asked.cause.at
    deadline = at + timedelta(seconds=control.deadlines.operation_s)
    ephemeral = operation is Operation.CLONE
    spec = sandbox.spec

    def snapshot(existing: Snapshot | None) -> Snapshot:
        return existing or Snapshot.create(
            snapshot_id,
            at,
            name,
            sandbox.id,
            sandbox.node_id,
            spec.template_id,
            spec.artifact,
            spec.recipe,
            job_id,
            ephemeral,
            driver=cast("DriverName | None", sandbox.driver or spec.driver),
            replicate=replicate,
        )

    return [
        part(Sandbox, asked.project, sandbox.id, lambda s: s.begin_snapshot(at, asked.command_id, snapshot_id, deadline, job_id)),
        Part(Snapshot, asked.project, snapshot_id, snapshot),
        _job(asked, job_id, operation, snapshot_id, sandbox, request),
    ]


def _job(
    asked: Asked, job_id: str, operation: Operation, snapshot_id: str, sandbox: Sandbox, request: dict[str, object] | None = None
) -> Part[Job]:
    def job(existing: Job | None) -> Job:
        return existing or Job.create(
            job_id, asked.cause.at, operation, "snapshot", snapshot_id, request, targets=(sandbox.node_id,), sandbox_id=sandbox.id
        )

    return Part(Job, asked.project, job_id, job)


async def export(control: Control, asked: Asked, command: SnapshotExport) -> Reply:
    """Have it stored where every node can fetch it. Raises ``snapshot.export-failed`` when that is known within ``wait_s``."""
    deadline = control.deadline(control.deadlines.job_s)
    request = partial(Snapshot.request_export, at=asked.cause.at, deadline=deadline)
    done = await control.change(Snapshot, asked.project, command.snapshot_id, asked.cause, request)

    async def ended() -> bool:
        return (await control.get(Snapshot, asked.project, command.snapshot_id)).export is None

    settled = await asked.wait(control, "snapshot", command.snapshot_id, ended, command.wait_s)
    snapshot = await control.get(Snapshot, asked.project, command.snapshot_id)
    if settled and snapshot.stored_as is None:
        raise Refused("snapshot.export-failed", snapshot.export_error or f"snapshot {snapshot.id} is {snapshot.state.value}")
    status = "stored" if snapshot.stored_as else "storing"
    return Reply({"snapshot_id": snapshot.id, "status": status, "settled": settled}, snapshot.id, done.seq)


async def delete(control: Control, asked: Asked, command: SnapshotDelete) -> Reply:
    """Hidden at once; the bytes go when the last sandbox that was made from it is gone (reference/cubesandbox.md §5.3)."""
    done = await control.change(Snapshot, asked.project, command.snapshot_id, asked.cause, lambda s: s.request_delete(asked.cause.at))

    async def hidden() -> bool:
        snapshot = await control.get(Snapshot, asked.project, command.snapshot_id)
        return snapshot.state is SnapshotState.GONE or not snapshot.removable

    settled = await asked.wait(control, "snapshot", command.snapshot_id, hidden, command.wait_s)
    return Reply({"settled": settled}, command.snapshot_id, done.seq)


async def rollback(control: Control, asked: Asked, command: SandboxRollback) -> Reply:
    """Put a sandbox back to one of its own snapshots, under the next generation (reference/cubesandbox.md §5.4)."""
    job_id = ids.job_id(asked.project, asked.command_id)
    await once(control, asked, Job, job_id, partial(_way_back, control, asked, command, job_id))
    sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
    job = await control.get(Job, asked.project, job_id)
    result = {"generation": job.result.get("generation", sandbox.last_generation), "job_id": job_id}
    return await job_reply(control, asked, job_id, result, command.sandbox_id, command.wait_s)


async def _way_back(control: Control, asked: Asked, command: SandboxRollback, job_id: str) -> Parts:
    """The snapshot knows of it: a delete that comes meanwhile leaves a tombstone with its bytes (reference/cubesandbox.md §5.3)."""
    snapshot = await control.get(Snapshot, asked.project, command.snapshot_id)
    snapshot.require_usable()
    sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
    storage_gate(control, sandbox.node_id)
    at = asked.cause.at
    deadline = at + timedelta(seconds=control.deadlines.operation_s)

    generations: list[int] = []

    def begin(s: Sandbox) -> None:
        generations[:] = [s.request_rollback(at, asked.command_id, snapshot.id, snapshot.sandbox_id, job_id, deadline)]

    def there(s: Snapshot) -> None:
        s.place(at, sandbox.node_id)
        s.begin_rollback(at, generations[0])

    return [
        part(Sandbox, asked.project, sandbox.id, begin),
        part(Snapshot, asked.project, snapshot.id, there),
        _job(asked, job_id, Operation.SNAPSHOT_ROLLBACK, snapshot.id, sandbox),
    ]


async def clone(control: Control, asked: Asked, command: SandboxClone) -> Reply:
    """One passing snapshot and ``count`` sandboxes from it; the snapshot goes with the last of them."""
    snapshot_id = ids.snapshot_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    clones = [ids.sandbox_id(asked.project, ids.derived(asked.command_id, "clone", n)) for n in range(command.count)]
    taking = partial(_snapshot, control, asked, command.sandbox_id, snapshot_id, job_id, Operation.CLONE, request={"clones": clones})
    await once(control, asked, Job, job_id, taking)
    return await job_reply(control, asked, job_id, {"sandbox_ids": clones}, command.sandbox_id, command.wait_s)
