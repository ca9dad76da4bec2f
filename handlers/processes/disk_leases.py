"""The life of a lease: bound when the disk is there and mounted nowhere, over when its sandbox ends, given up when it waits too long.

Disk and lease change in one commit. What is mounted is let go only when the node has said that the sandbox is down, or when it was evicted
(reference/miren-sandbox.md §5.2, design.md §10.5).
"""

from __future__ import annotations

from typing import Any, Final

from domain.disks.disk import Disk
from domain.disks.lease import DiskLease, LeaseState, lease_id
from domain.disks.states import DiskState
from domain.nodes.orders import DiskGrant, Failure
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Control, Parts, part

TIMER: Final = "bind"
_ENDING: Final = frozenset({SandboxState.STOPPED, SandboxState.DEAD})


async def pump(control: Control, project: str, identifier: str) -> None:
    """Do for a lease what is due now."""
    lease = await control.find(DiskLease, project, identifier)
    if lease is None:
        return
    sandbox = await control.find(Sandbox, project, lease.sandbox_id)
    if sandbox is None or sandbox.state in _ENDING:
        await _release(control, project, lease)
        if await _down(control, project, sandbox):
            await _detach(control, project, lease)
    elif lease.state is LeaseState.PENDING:
        await _bind(control, project, lease, sandbox)


async def settle(control: Control, project: str, disk: Disk) -> None:
    """Let whoever has the disk, or may have it mounted, give it back if that is due; nobody need wait for the log to say so."""
    for sandbox_id in dict.fromkeys(filter(None, (disk.attached, disk.holder))):
        await pump(control, project, lease_id(sandbox_id, disk.id))


async def granted(control: Control, project: str, sandbox: Sandbox) -> list[dict[str, Any]] | None:
    """What the node is told of a sandbox's disks; None until it may mount all of them."""
    grants = []
    for use in sandbox.spec.disks:
        lease = await control.get(DiskLease, project, lease_id(sandbox.id, use.disk))
        if lease.state is not LeaseState.BOUND:
            return None
        grant = DiskGrant(disk=use.disk, volume_id=lease.volume_id, epoch=lease.epoch, mount_path=use.mount_path, read_only=use.read_only)
        grants.append(grant.model_dump(mode="json"))
    return grants


async def _release(control: Control, project: str, lease: DiskLease) -> None:
    """The sandbox ends: whoever comes next need not wait for more than its mount (reference/miren-sandbox.md §3.5, step 9)."""
    if lease.state not in {LeaseState.PENDING, LeaseState.BOUND}:
        return
    cause = control.own_cause(project, "disk-lease", lease.id, "release")
    parts: Parts = [
        part(Disk, project, lease.disk, lambda d: d.hand_back(cause.at, lease.sandbox_id)),
        part(DiskLease, project, lease.id, lambda item: item.release(cause.at)),
    ]
    await control.store.transact_many(parts, cause)


async def _down(control: Control, project: str, sandbox: Sandbox | None) -> bool:
    """Has its node nothing of it any more? A creation that could not be undone may have left a mount."""
    if sandbox is None:
        return True
    saga = await control.find(Provisioning, project, sandbox.id)
    return sandbox.state is SandboxState.DEAD and (saga is None or not saga.unwinding)


async def _detach(control: Control, project: str, lease: DiskLease) -> None:
    cause = control.own_cause(project, "disk-lease", lease.id, "detach")
    await control.change(Disk, project, lease.disk, cause, lambda d: d.detach(cause.at, lease.sandbox_id))


async def _bind(control: Control, project: str, lease: DiskLease, sandbox: Sandbox) -> None:
    """Give it the disk, or give it up."""
    disk = await control.get(Disk, project, lease.disk)
    if disk.state is DiskState.ERROR and disk.failure is not None:
        await _give_up(control, project, lease, sandbox, disk.failure)
        return
    if disk.free:
        await _attach(control, project, lease)
        return
    if control.clock() < lease.deadline:
        await control.set_timer(project, DiskLease.TOPIC, lease.id, TIMER, lease.deadline, lease.version)
        return
    why = f"disk {disk.id} is {disk.state.value}" if disk.attached is None else f"sandbox {disk.attached} still has disk {disk.id} mounted"
    failure = Failure(code="disk.lease-timeout", message=why, details={"disk": disk.id, "attached_to": disk.attached})
    await _give_up(control, project, lease, sandbox, failure)


async def _attach(control: Control, project: str, lease: DiskLease) -> None:
    cause = control.own_cause(project, "disk-lease", lease.id, "bind")
    epochs: list[int] = []

    def attach(disk: Disk) -> None:
        disk.attach(cause.at, lease.sandbox_id)
        epochs[:] = [disk.epoch] if disk.bound and disk.holder == lease.sandbox_id else []

    def bind(item: DiskLease) -> None:
        for epoch in epochs:
            item.bind(cause.at, epoch)

    parts: Parts = [part(Disk, project, lease.disk, attach), part(DiskLease, project, lease.id, bind)]
    await control.store.transact_many(parts, cause)


async def _give_up(control: Control, project: str, lease: DiskLease, sandbox: Sandbox, failure: Failure) -> None:
    """Its sandbox does not come up. Whoever has the disk is left alone."""
    cause = control.own_cause(project, "disk-lease", lease.id, "give-up")
    parts: Parts = [
        part(Disk, project, lease.disk, lambda d: d.hand_back(cause.at, lease.sandbox_id)),
        part(DiskLease, project, lease.id, lambda item: item.fail(cause.at, failure)),
        part(Sandbox, project, sandbox.id, lambda s: s.fail_start(cause.at, s.attempt, "startup_failed", failure)),
    ]
    await control.store.transact_many(parts, cause)
