"""Reports about sandboxes and their snapshots. The last word of a saga is the sandbox's new state: one append."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog

from bus.store import Part
from domain.kernel.command import Cause
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import (
    Failure,
    ProvisionFailed,
    Report,
    ReportKind,
    SandboxRunning,
    SandboxStopped,
    SnapshotExported,
    SnapshotTaken,
    Steps,
    Verb,
)
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Operation as SandboxOperation
from domain.sandboxes.sandbox import Sandbox
from domain.templates.artifact import Artifact
from domain.templates.job import Job, Operation, Phase
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Control, Parts, part
from handlers.processes import removal, sandboxes, shipping
from handlers.reporting.taking import Taker, failure_of

log = structlog.get_logger(__name__)

BOOT: Final = "start"
"""The step of a provisioning by which a sandbox begins to boot. Steps are only told one by one where they take long."""
LOST: Final = "snapshot.not-found"
"""What a node says of a snapshot that it does not have any more; that it does not answer is no such word (design.md §10.5)."""


async def _provisioned(control: Control, report: Report, cause: Cause) -> None:
    """Steps as they happen, and how it ended."""
    match report.kind:
        case ReportKind.STEP:
            steps = Steps.model_validate(report.body)
            await _record(control, report, cause, lambda p: p.record_steps(cause.at, report.attempt, steps.first, steps.steps))
            if report.error is not None:
                await _blocked(control, report, cause)
            elif any(step.step == BOOT for step in steps.steps):
                await control.change(Sandbox, report.project, report.process_id, cause, lambda s: s.starting(cause.at, report.attempt))
        case ReportKind.DONE:
            await _running(control, report, cause)
        case _:
            await _not_running(control, report, cause)


async def _blocked(control: Control, report: Report, cause: Cause) -> None:
    """The node's program does not know what an earlier one has begun there."""
    failure = failure_of(report)
    begun = tuple(map(str, failure.details.get("steps", ())))
    await _record(control, report, cause, lambda p: p.block(cause.at, report.attempt, failure, begun))


async def _record(control: Control, report: Report, cause: Cause, decide: Callable[[Provisioning], object]) -> None:
    await control.store.transact(Provisioning, report.project, report.process_id, _saga(report, cause, decide), cause)


def _saga(report: Report, cause: Cause, decide: Callable[[Provisioning], object]) -> Callable[[Provisioning | None], Provisioning]:
    """A decision over the saga's record. The order may be faster than its beginning is stored; then that is made up for."""

    def decision(known: Provisioning | None) -> Provisioning:
        provisioning = known or Provisioning.create(report.process_id, cause.at, report.node, report.attempt, sandboxes.STEPS)
        decide(provisioning)
        return provisioning

    return decision


async def _not_running(control: Control, report: Report, cause: Cause) -> None:
    failed = ProvisionFailed.model_validate(report.body)
    failure = failure_of(report)

    if failed.undo:
        await _undone(control, report, cause, failed.uncompensated)
        return

    def undo(p: Provisioning) -> None:
        p.record_steps(cause.at, report.attempt, failed.first, failed.steps)
        p.fail(cause.at, report.attempt, failed.failed_step, failure, failed.uncompensated)

    def fail(s: Sandbox) -> None:
        s.fail_start(cause.at, report.attempt, "startup_failed", failure)

    parts: Parts = [
        Part(Provisioning, report.project, report.process_id, _saga(report, cause, undo)),
        part(Sandbox, report.project, report.process_id, fail),
    ]
    spec = (await control.get(Sandbox, report.project, report.process_id)).spec
    source = spec.snapshot_id
    if source is not None and failure.code == LOST:
        parts.append(part(Snapshot, report.project, source, lambda s: s.lost(cause.at, failure, report.node)))
    await control.store.transact_many(parts, cause)
    if source is not None:
        await shipping.found_bad(control, report.project, source, spec.snapshot_manifest, report.node, failure.code)


async def _undone(control: Control, report: Report, cause: Cause, left: tuple[str, ...]) -> None:
    """How one more try went at undoing what a creation had left; no news for one that left nothing."""
    saga = await control.find(Provisioning, report.project, report.process_id)
    if saga is None or not saga.unwinding:
        return

    def accept(p: Provisioning) -> None:
        if left:
            p.undo_failed(cause.at, p.attempt, failure_of(report), left)
        else:
            p.undone(cause.at)

    await control.change(Provisioning, report.project, saga.id, cause, accept)


async def _running(control: Control, report: Report, cause: Cause) -> None:
    """The sandbox's start is the saga's last word, in one append (reference/miren-sandbox.md §2.4); its own record follows from that.

    At the latest when the report is delivered again. An atomic batch of both would cost ten appends (docs/benchmarks.md).
    """
    running = SandboxRunning.model_validate(report.body)

    def complete(p: Provisioning) -> None:
        p.record_steps(cause.at, report.attempt, running.first, running.steps)
        p.complete(cause.at, report.attempt)

    def up(s: Sandbox) -> None:
        s.mark_running(cause.at, report.attempt, running.driver, running.address, running.ports, running.generation)

    sandbox = await control.get(Sandbox, report.project, report.process_id)
    if sandbox.state in sandboxes.STARTING:
        sandbox = (await control.change(Sandbox, report.project, sandbox.id, cause, up)).aggregate
        await asyncio.sleep(0)  # whoever waits for the sandbox is told first
    if sandbox.started_at is not None:
        await _record(control, report, cause, complete)


def _answered(control: Control, report: Report, sandbox: Sandbox) -> SandboxOperation | None:
    """The operation that the report answers: the one in progress, or the one that expired last; a late answer is still the truth."""
    for operation in filter(None, (sandbox.operation, sandbox.expired)):
        what = sandboxes.due_for(sandbox, operation)
        if sandboxes.order_of(control, report.project, sandbox, what).id == report.order:
            return operation
    return None


async def _paused(control: Control, report: Report, cause: Cause) -> None:
    await _operated(control, report, cause, lambda s, command: s.paused(cause.at, command))


async def _resumed(control: Control, report: Report, cause: Cause) -> None:
    await _operated(control, report, cause, lambda s, command: s.resumed(cause.at, command))


async def _limited(control: Control, report: Report, cause: Cause) -> None:
    await _operated(control, report, cause, lambda s, command: s.limits_changed(cause.at, command))


async def _restarted(control: Control, report: Report, cause: Cause) -> None:
    """Up again, or not; what is late is still the truth, and no news when another restart has begun since."""
    sandbox = await control.get(Sandbox, report.project, report.process_id)
    operation = _answered(control, report, sandbox)
    if operation is None:
        return
    generation = operation.generation or 0

    def decide(s: Sandbox) -> None:
        if report.kind is ReportKind.DONE:
            running = SandboxRunning.model_validate(report.body)
            s.restarted(cause.at, generation, running.address, running.ports, running.driver)
        elif report.kind is ReportKind.FAILED:
            s.restart_failed(cause.at, generation, failure_of(report))

    await control.change(Sandbox, report.project, sandbox.id, cause, decide)


async def _operated(control: Control, report: Report, cause: Cause, accept: Callable[[Sandbox, str], object]) -> None:
    sandbox = await control.get(Sandbox, report.project, report.process_id)
    operation = _answered(control, report, sandbox)
    if operation is None:
        return

    def decide(s: Sandbox) -> None:
        if report.kind is ReportKind.DONE:
            accept(s, operation.command)
        else:
            s.operation_failed(cause.at, operation.command, failure_of(report))

    await control.change(Sandbox, report.project, sandbox.id, cause, decide)


async def _destroyed(control: Control, report: Report, cause: Cause) -> None:
    if report.kind is not ReportKind.DONE:
        log.error("sandbox.undestroyed", sandbox=report.process_id, node=report.node, error=failure_of(report).message)
        await _undone(control, report, cause, ProvisionFailed.model_validate(report.body).uncompensated or ("unknown",))
        return
    stopped = SandboxStopped.model_validate(report.body)
    await control.change(Sandbox, report.project, report.process_id, cause, lambda s: s.destroyed(cause.at, stopped.exit_code))
    await _undone(control, report, cause, ())


async def _rolled_back(control: Control, report: Report, cause: Cause) -> None:
    sandbox = await control.get(Sandbox, report.project, report.process_id)
    operation = _answered(control, report, sandbox)
    if operation is None or operation.job_id is None or operation.snapshot_id is None:
        return
    generation = operation.generation or 0
    done = report.kind is ReportKind.DONE

    def settle(s: Sandbox) -> None:
        if done:
            running = SandboxRunning.model_validate(report.body)
            s.rolled_back(cause.at, generation, running.address, running.ports, running.driver)
        else:
            s.rollback_failed(cause.at, generation, failure_of(report), bool(report.body.get("fatal")))

    def finish(j: Job) -> None:
        if done:
            j.succeed(cause.at, {"generation": generation})
        else:
            j.fail(cause.at, Phase.ROLLBACK_DRIVING, failure_of(report))

    def end(s: Snapshot) -> None:
        s.end_rollback(cause.at, generation, on_it=done)
        if not done and failure_of(report).code == LOST:
            s.lost(cause.at, failure_of(report), report.node)

    parts: Parts = [
        part(Sandbox, report.project, sandbox.id, settle),
        part(Job, report.project, operation.job_id, finish),
        part(Snapshot, report.project, operation.snapshot_id, end),
    ]
    former = sandbox.snapshot_id
    if done and former not in {None, operation.snapshot_id}:
        parts.append(part(Snapshot, report.project, str(former), lambda s: s.detach(cause.at, sandbox.id, "rolled back to another one")))
    await control.store.transact_many(parts, cause)
    if not done:
        await _could_not_fetch(control, report, str(operation.snapshot_id))


async def _could_not_fetch(control: Control, report: Report, snapshot_id: str) -> None:
    """Was it that what is stored is damaged?"""
    snapshot = await control.find(Snapshot, report.project, snapshot_id)
    if snapshot is not None and snapshot.stored_as is not None:
        manifest = snapshot.stored_as.manifest
        await shipping.found_bad(control, report.project, snapshot_id, manifest, report.node, failure_of(report).code)


async def _snapshotted(control: Control, report: Report, cause: Cause) -> None:
    snapshot = await control.get(Snapshot, report.project, report.process_id)
    job = await control.get(Job, report.project, snapshot.job_id)
    own = control.own_cause(SYSTEM_PROJECT, "artifact", snapshot.artifact.artifact_id, "own", snapshot.id)
    done = report.kind is ReportKind.DONE
    if done and snapshot.state in {SnapshotState.CREATING, SnapshotState.READY}:
        await control.change(
            Artifact, SYSTEM_PROJECT, snapshot.artifact.artifact_id, own, lambda a: a.add_owner(own.at, f"{report.project}/{snapshot.id}")
        )

    def settle(s: Snapshot) -> None:
        if done:
            taken = SnapshotTaken.model_validate(report.body)
            until = cause.at + timedelta(seconds=control.deadlines.job_s)
            s.ready(cause.at, job.id, taken.size_bytes, taken.holds, taken.versions, taken.needs, until)
        else:
            s.fail(cause.at, job.id, failure_of(report).message)

    def free(s: Sandbox) -> None:
        s.end_snapshot(cause.at, snapshot.id, done, None if done else failure_of(report).message)

    def finish(j: Job) -> None:
        if not done:
            j.fail(cause.at, Phase.SNAPSHOTTING, failure_of(report))
        elif j.operation is Operation.SNAPSHOT_CREATE:
            j.succeed(cause.at, {"snapshot_id": snapshot.id})
        else:
            j.advance(cause.at, Phase.REGISTERING)

    parts: Parts = [
        part(Snapshot, report.project, snapshot.id, settle),
        part(Sandbox, report.project, snapshot.sandbox_id, free),
        part(Job, report.project, job.id, finish),
    ]
    await control.store.transact_many(parts, cause)


async def _snapshot_removed(control: Control, report: Report, cause: Cause) -> None:
    del cause
    snapshot = await control.get(Snapshot, report.project, report.process_id)
    if report.kind is ReportKind.DONE and snapshot.removable:
        await removal.snapshot_unplaced(control, report.project, snapshot.id, report.node)


async def _snapshot_exported(control: Control, report: Report, cause: Cause) -> None:
    """What the node says is looked at before it is believed; what is missing is sent again."""
    snapshot = await control.get(Snapshot, report.project, report.process_id)
    if report.kind is ReportKind.PROGRESS or snapshot.export is None or report.node not in snapshot.places:
        return
    if report.kind is ReportKind.FAILED:
        failure = failure_of(report)

        def give_up(s: Snapshot) -> None:
            s.export_failed(cause.at, report.attempt, failure)
            if failure.code == LOST:
                s.lost(cause.at, failure, report.node)

        await control.change(Snapshot, report.project, snapshot.id, cause, give_up)
        return
    exported = SnapshotExported.model_validate(report.body)
    missing = await shipping.complete(control, report.project, snapshot.id, exported)

    def settle(s: Snapshot) -> None:
        if missing:
            lacking = Failure(code="object.not-found", message=f"{len(missing)} chunks are missing", retryable=True)
            s.export_failed(cause.at, report.attempt, lacking)
        else:
            s.stored(cause.at, report.attempt, exported)

    await control.change(Snapshot, report.project, snapshot.id, cause, settle)


async def _executed(control: Control, report: Report, cause: Cause) -> None:
    """Goes to the caller who waits; the event is recorded by the handler that answers."""


TAKERS: Final[dict[str, Taker]] = {
    Verb.SANDBOX_PROVISION: _provisioned,
    Verb.SANDBOX_PAUSE: _paused,
    Verb.SANDBOX_RESUME: _resumed,
    Verb.SANDBOX_LIMITS: _limited,
    Verb.SANDBOX_DESTROY: _destroyed,
    Verb.SANDBOX_ROLLBACK: _rolled_back,
    Verb.SANDBOX_RESTART: _restarted,
    Verb.SANDBOX_SNAPSHOT: _snapshotted,
    Verb.SNAPSHOT_REMOVE: _snapshot_removed,
    Verb.SNAPSHOT_EXPORT: _snapshot_exported,
    Verb.SANDBOX_EXEC: _executed,
}
