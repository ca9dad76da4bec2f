"""``snapshot.*``, ``sandbox.rollback`` and ``sandbox.clone``: what is done with a sandbox's past."""

from __future__ import annotations

from datetime import timedelta

from bus.endpoints import Reply
from bus.store import Part
from domain.kernel import ids
from domain.kernel.errors import Refused
from domain.sandboxes.commands import SandboxClone, SandboxRollback
from domain.sandboxes.sandbox import Sandbox
from domain.templates.commands import SnapshotCreate, SnapshotDelete
from domain.templates.job import Job, Operation
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.commands.templates import job_reply
from handlers.control import Control, Parts, part
from handlers.dispatch import Asked


async def create(control: Control, asked: Asked, command: SnapshotCreate) -> Reply:
    """A snapshot, its job, and the sandbox's promise to do nothing else meanwhile, in one commit."""
    snapshot_id = ids.snapshot_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    result = {"snapshot_id": snapshot_id, "job_id": job_id}
    if await control.find(Snapshot, asked.project, snapshot_id) is None:
        sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
        storage_gate(control, sandbox.node_id)
        await control.store.transact_many(
            snapshot_parts(control, asked, sandbox, snapshot_id, job_id, name=command.name or "", operation=Operation.SNAPSHOT_CREATE),
            asked.cause,
        )
    return await job_reply(control, asked.project, job_id, result, snapshot_id, command.wait_s)


def storage_gate(control: Control, node_id: str) -> None:
    """Nothing new is written on a node that is nearly full, or of which nobody knows (reference/cubesandbox.md §5.7)."""
    node = control.fleet.nodes.get(node_id)
    mode = "unknown" if node is None else node.storage_mode
    if mode not in {"healthy", "warn"}:
        raise Refused(
            "storage.blocked", f"the storage of node {node_id} is {mode}", retryable=True, details={"node": node_id, "mode": mode}
        )


def snapshot_parts(
    control: Control,
    asked: Asked,
    sandbox: Sandbox,
    snapshot_id: str,
    job_id: str,
    *,
    name: str,
    operation: Operation,
    request: dict[str, object] | None = None,
) -> Parts:
    """The three aggregates that a snapshot concerns."""
    at = asked.cause.at
    deadline = at + timedelta(seconds=control.deadlines.operation_s)
    ephemeral = operation is Operation.CLONE
    spec = sandbox.spec

    def snapshot(existing: Snapshot | None) -> Snapshot:
        return existing or Snapshot.create(
            snapshot_id, at, name, sandbox.id, sandbox.node_id, spec.template_id, spec.artifact, spec.recipe, job_id, ephemeral
        )

    def job(existing: Job | None) -> Job:
        return existing or Job.create(
            job_id, at, operation, "snapshot", snapshot_id, request or {}, 1, None, (sandbox.node_id,), None, sandbox.id
        )

    return [
        part(Sandbox, asked.project, sandbox.id, lambda s: s.begin_snapshot(at, asked.command_id, snapshot_id, deadline, job_id)),
        Part(Snapshot, asked.project, snapshot_id, snapshot),
        Part(Job, asked.project, job_id, job),
    ]


async def delete(control: Control, asked: Asked, command: SnapshotDelete) -> Reply:
    """Hidden at once; the bytes go when the last sandbox that was made from it is gone (reference/cubesandbox.md §5.3)."""
    done = await control.change(Snapshot, asked.project, command.snapshot_id, asked.cause, lambda s: s.request_delete(asked.cause.at))

    async def hidden() -> bool:
        snapshot = await control.get(Snapshot, asked.project, command.snapshot_id)
        return snapshot.state is SnapshotState.GONE or not snapshot.removable

    settled = await control.waiting.until("snapshot", asked.project, command.snapshot_id, hidden, command.wait_s)
    return Reply({"settled": settled}, command.snapshot_id, done.seq)


async def rollback(control: Control, asked: Asked, command: SandboxRollback) -> Reply:
    """Put a sandbox back to one of its own snapshots, under the next generation (reference/cubesandbox.md §5.4)."""
    job_id = ids.job_id(asked.project, asked.command_id)
    at = asked.cause.at
    if await control.find(Job, asked.project, job_id) is None:
        snapshot = await control.get(Snapshot, asked.project, command.snapshot_id)
        if snapshot.state is not SnapshotState.READY:
            raise Refused(
                "snapshot.illegal-state", f"snapshot {snapshot.id} is {snapshot.state.value}", details={"state": snapshot.state.value}
            )
        sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
        storage_gate(control, sandbox.node_id)
        deadline = at + timedelta(seconds=control.deadlines.operation_s)

        def job(existing: Job | None) -> Job:
            return existing or Job.create(
                job_id, at, Operation.SNAPSHOT_ROLLBACK, "snapshot", snapshot.id, {}, 1, None, (sandbox.node_id,), None, sandbox.id
            )

        def begin(s: Sandbox) -> None:
            s.request_rollback(at, asked.command_id, snapshot.id, snapshot.sandbox_id, job_id, deadline)

        await control.store.transact_many(
            [part(Sandbox, asked.project, sandbox.id, begin), Part(Job, asked.project, job_id, job)], asked.cause
        )
    sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
    done = await control.get(Job, asked.project, job_id)
    result = {"generation": done.result.get("generation", sandbox.last_generation), "job_id": job_id}
    return await job_reply(control, asked.project, job_id, result, command.sandbox_id, command.wait_s)


async def clone(control: Control, asked: Asked, command: SandboxClone) -> Reply:
    """One passing snapshot and ``count`` sandboxes from it; the snapshot goes with the last of them."""
    snapshot_id = ids.snapshot_id(asked.project, asked.command_id)
    job_id = ids.job_id(asked.project, asked.command_id)
    clones = [ids.sandbox_id(asked.project, ids.derived(asked.command_id, "clone", n)) for n in range(command.count)]
    if await control.find(Job, asked.project, job_id) is None:
        sandbox = await control.get(Sandbox, asked.project, command.sandbox_id)
        storage_gate(control, sandbox.node_id)
        parts = snapshot_parts(control, asked, sandbox, snapshot_id, job_id, name="", operation=Operation.CLONE, request={"clones": clones})
        await control.store.transact_many(parts, asked.cause)
    return await job_reply(control, asked.project, job_id, {"sandbox_ids": clones}, command.sandbox_id, command.wait_s)
