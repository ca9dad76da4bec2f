"""The life of a sandbox: provisioning, operations, teardown. Which order is due follows from the sandbox alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from domain.nodes.orders import Failure, Order, Verb
from domain.sandboxes.provisioning import Provisioning, ProvisioningState
from domain.sandboxes.sandbox import Operation, Sandbox, SandboxState
from domain.templates.job import Job, Phase
from domain.templates.snapshot import Snapshot
from handlers.control import Control, Parts, part
from handlers.processes.disk_leases import granted

STARTING = frozenset({SandboxState.PENDING, SandboxState.NOT_READY})
STEPS = ("artifact", "root", "network", "logs", "start", "ready")
STEPS_WITH_DISKS = ("artifact", "root", "disks", *STEPS[2:])


@dataclass(frozen=True, slots=True)
class Due:
    """An order that is due: its verb, body, and what makes its id its own."""

    verb: Verb
    body: dict[str, Any]
    salt: str
    attempt: int
    process: str = "sandbox"
    process_id: str = ""


def due(sandbox: Sandbox, attempt: int) -> Due | None:
    """What the node has to be told now, if anything."""
    match sandbox.state:
        case SandboxState.PENDING | SandboxState.NOT_READY:
            body = {"sandbox_id": sandbox.id, "generation": sandbox.generation, "spec": sandbox.spec.model_dump(mode="json")}
            return Due(Verb.SANDBOX_PROVISION, body, "provision", attempt, "provisioning")
        case SandboxState.STOPPED:
            body = {"sandbox_id": sandbox.id, "generation": sandbox.generation, "grace_s": sandbox.grace_s}
            return Due(Verb.SANDBOX_DESTROY, body, "delete" if sandbox.deleting else "stop", 1)
        case SandboxState.RUNNING | SandboxState.PAUSED if sandbox.operation is not None:
            return due_for(sandbox, sandbox.operation)
        case _:
            return None


def due_for(sandbox: Sandbox, operation: Operation) -> Due:
    """The order of an operation."""
    target: dict[str, Any] = {"sandbox_id": sandbox.id}
    match operation.kind:
        case "rollback":
            body = {**target, "snapshot_id": operation.snapshot_id, "generation": operation.generation}
            return Due(Verb.SANDBOX_ROLLBACK, body, operation.command, operation.attempt)
        case "restart":
            return Due(Verb.SANDBOX_RESTART, {**target, "generation": operation.generation}, operation.command, operation.attempt)
        case "snapshot":
            body = {**target, "snapshot_id": operation.snapshot_id, "generation": sandbox.generation}
            return Due(Verb.SANDBOX_SNAPSHOT, body, operation.command, operation.attempt, "snapshot", operation.snapshot_id or "")
        case "limits":
            limits = {} if operation.limits is None else operation.limits.model_dump()
            body = {**target, "generation": sandbox.generation, **limits}
            return Due(Verb.SANDBOX_LIMITS, body, operation.command, operation.attempt)
        case kind:
            return Due(Verb(f"sandbox-{kind}"), {**target, "generation": sandbox.generation}, operation.command, operation.attempt)


async def pump(control: Control, project: str, sandbox_id: str) -> None:
    """Send what is due; give up what is too old; clean up behind the dead."""
    sandbox = await control.find(Sandbox, project, sandbox_id)
    if sandbox is None:
        return
    if sandbox.state is SandboxState.DEAD:
        await _bury(control, project, sandbox)
        return
    if sandbox.state is SandboxState.STOPPED:
        await fence(control, project, sandbox)
    if await _lost(control, project, sandbox) or await _expired(control, project, sandbox):
        return
    if sandbox.state in STARTING:
        await _provision(control, project, sandbox)
    elif not _waits(control, sandbox) and (what := due(sandbox, 1)) is not None:
        await control.order(sandbox.node_id, order_of(control, project, sandbox, await _with_manifest(control, project, what)))
    await _timers(control, project, sandbox)


def _waits(control: Control, sandbox: Sandbox) -> bool:
    """Is it not yet time for what is to be done?"""
    begins = None if sandbox.operation is None else sandbox.operation.not_before
    return begins is not None and control.clock() < begins


async def _with_manifest(control: Control, project: str, what: Due) -> Due:
    """A rollback says where the snapshot is stored, if it is: the node fetches what it has lost."""
    snapshot = await control.find(Snapshot, project, what.body["snapshot_id"]) if what.verb is Verb.SANDBOX_ROLLBACK else None
    if snapshot is None or snapshot.stored_as is None:
        return what
    return replace(what, body={**what.body, "snapshot_manifest": snapshot.stored_as.manifest})


def order_of(control: Control, project: str, sandbox: Sandbox, what: Due) -> Order:
    """The order for what is due; its id depends on nothing else, so that a report can be matched to it."""
    process = (what.process, what.process_id or sandbox.id)
    first = what.verb is Verb.SANDBOX_PROVISION
    seconds = control.deadlines.provision_s if first else control.deadlines.operation_s
    body = {**what.body, "issuer": control.issuer} if first and control.issuer else what.body
    return control.new_order(what.verb, project, process, body, key=sandbox.id, attempt=what.attempt, salt=what.salt, deadline_s=seconds)


async def _provision(control: Control, project: str, sandbox: Sandbox) -> None:
    """The order, and the saga's record that begins with it. The first order does not wait for the record: the sandbox demands both."""
    disks = await granted(control, project, sandbox)
    if disks is None:  # the binding of its last lease brings it here again
        return
    known = control.store.peek(Provisioning, project, sandbox.id)
    first = known is None and sandbox.version == 1
    attempt = known.attempt if known else 1 if first else await _begin(control, project, sandbox)
    if (what := due(sandbox, attempt)) is not None:
        what = replace(what, body={**what.body, "disks": disks}) if disks else what
        await control.order(sandbox.node_id, order_of(control, project, sandbox, what))
    if first:
        await _begin(control, project, sandbox)


async def _begin(control: Control, project: str, sandbox: Sandbox) -> int:
    cause = control.own_cause(project, "provisioning", sandbox.id, "begin")

    def begin(p: Provisioning | None) -> Provisioning:
        return p or Provisioning.create(sandbox.id, cause.at, sandbox.node_id, 1, STEPS_WITH_DISKS if sandbox.spec.disks else STEPS)

    return (await control.store.transact(Provisioning, project, sandbox.id, begin, cause, new=True)).aggregate.attempt


async def fence(control: Control, project: str, sandbox: Sandbox) -> None:
    """A stop during creation supersedes it: whatever its steps report later no longer matters."""
    provisioning = await control.find(Provisioning, project, sandbox.id)
    if provisioning is not None and provisioning.state is ProvisioningState.RUNNING:
        cause = control.own_cause(project, "provisioning", sandbox.id, "supersede")
        await control.change(Provisioning, project, sandbox.id, cause, lambda p: p.supersede(cause.at))


async def _lost(control: Control, project: str, sandbox: Sandbox) -> bool:
    """An evicted node never answers again: what was on it is dead by decision, not by missing information (design.md §10.5)."""
    node = control.fleet.nodes.get(sandbox.node_id)
    if node is None or not node.evicted:
        return False
    await fence(control, project, sandbox)
    cause = control.own_cause(project, "sandbox", sandbox.id, "lost")

    def decide(s: Sandbox) -> None:
        s.request_delete(cause.at, cause.command, "node_lost")
        s.destroyed(cause.at)

    await control.change(Sandbox, project, sandbox.id, cause, decide)
    return True


async def _expired(control: Control, project: str, sandbox: Sandbox) -> bool:
    """Nothing stays busy for ever: an operation ends at its deadline, a creation at its own (design.md §10.4)."""
    now = control.clock()
    if sandbox.state in STARTING:
        patience = max((use.lease_timeout_s for use in sandbox.spec.disks), default=0) + control.deadlines.exec_slack_s
        late = (now - sandbox.created_on).total_seconds() > control.deadlines.provision_s + patience
        if late:
            await _give_up(control, project, sandbox)
        return late
    operation = sandbox.operation
    if operation is None or now <= operation.deadline:
        return False
    if operation.kind == "restart":
        await _stays_down(control, project, sandbox)
        return True
    cause = control.own_cause(project, "sandbox", sandbox.id, "expire", operation.command)
    parts: Parts = [part(Sandbox, project, sandbox.id, lambda s: s.operation_expired(cause.at, operation.command))]
    if operation.kind == "rollback" and operation.job_id is not None:  # done or not: what the node says later is still believed
        parts.append(part(Job, project, operation.job_id, lambda j: j.advance(cause.at, Phase.ROLLBACK_RECOVERING)))
    await control.store.transact_many(parts, cause)
    return True


async def _stays_down(control: Control, project: str, sandbox: Sandbox) -> None:
    """A restart that did not come about in its time: the sandbox has ended with its process."""
    cause = control.own_cause(project, "sandbox", sandbox.id, "stays-down", sandbox.last_generation)
    await control.change(Sandbox, project, sandbox.id, cause, lambda s: s.request_stop(cause.at, cause.command, 0, "exited"))


async def _give_up(control: Control, project: str, sandbox: Sandbox) -> None:
    cause = control.own_cause(project, "sandbox", sandbox.id, "give-up")
    failure = Failure(code="sandbox.startup-timeout", message=f"node {sandbox.node_id} did not bring it up in time")
    attempt = (await control.get(Provisioning, project, sandbox.id)).attempt
    parts: Parts = [
        part(Sandbox, project, sandbox.id, lambda s: s.fail_start(cause.at, attempt, "startup_failed", failure)),
        part(Provisioning, project, sandbox.id, lambda p: p.fail(cause.at, attempt, "", failure, ("unknown",))),
    ]
    await control.store.transact_many(parts, cause)
    what = Due(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox.id, "grace_s": 0}, "give-up", 1)
    await control.order(sandbox.node_id, order_of(control, project, sandbox, what))


async def _bury(control: Control, project: str, sandbox: Sandbox) -> None:
    """A dead sandbox holds no snapshot any more (reference/cubesandbox.md §5.5)."""
    for snapshot_id in filter(None, dict.fromkeys((sandbox.spec.snapshot_id, sandbox.snapshot_id))):
        if await control.find(Snapshot, project, snapshot_id) is None:
            continue
        cause = control.own_cause(project, "snapshot", snapshot_id, "detach", sandbox.id)
        decide = partial(Snapshot.detach, at=cause.at, sandbox_id=sandbox.id, reason="sandbox destroyed")
        await control.change(Snapshot, project, snapshot_id, cause, decide)


async def _timers(control: Control, project: str, sandbox: Sandbox) -> None:
    if sandbox.state is SandboxState.RUNNING and sandbox.ends_at is not None:
        await control.set_timer(project, "sandbox", sandbox.id, "ttl", sandbox.ends_at, sandbox.ttl_generation)
    if sandbox.operation is not None and sandbox.operation.not_before is not None and _waits(control, sandbox):
        await control.set_timer(project, "sandbox", sandbox.id, "restart", sandbox.operation.not_before, sandbox.last_generation)
    if sandbox.operation is not None:
        await control.set_timer(project, "sandbox", sandbox.id, "operation", sandbox.operation.deadline, sandbox.generation)


async def on_due(control: Control, project: str, sandbox_id: str, name: str, generation: int) -> None:
    """A timer of a sandbox fired. Stale ones change nothing: the sandbox knows its own time-to-live's number."""
    sandbox = await control.find(Sandbox, project, sandbox_id)
    if sandbox is None:
        return
    if name == "ttl":
        await _end_of_life(control, project, sandbox, generation)
    await pump(control, project, sandbox_id)


async def _end_of_life(control: Control, project: str, sandbox: Sandbox, generation: int) -> None:
    """What the sandbox says is due: a pause or its end."""
    cause = control.own_cause(project, "sandbox", sandbox.id, "ttl", generation)
    done = await control.change(Sandbox, project, sandbox.id, cause, lambda s: s.ttl_due(cause.at, generation))
    action = done.aggregate.ttl_action
    if action is None:
        return
    then = control.own_cause(project, "sandbox", sandbox.id, "ttl-act", generation)
    deadline = control.deadline(control.deadlines.operation_s)

    def act(s: Sandbox) -> None:
        if action == "pause":
            s.request_pause(then.at, then.command, deadline)
        else:
            s.request_delete(then.at, then.command)

    await control.change(Sandbox, project, sandbox.id, then, act)
