"""The life of a disk: made, grown, kept, removed by its node. Which order is due follows from the disk alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from domain.disks.disk import Disk
from domain.disks.lease import DiskLease, lease_id
from domain.disks.states import DiskState
from domain.nodes.orders import DiskGrow, DiskProvision, DiskSnapshot, DiskTarget, Failure, Order, Verb
from handlers.control import Control, Parts, part
from handlers.processes import disk_leases

TIMER: Final = "operation"
REMOVE_AGAIN: Final = timedelta(seconds=60)
"""How long after a failed removal the node is told again."""


def order_of(control: Control, project: str, disk: Disk) -> Order | None:
    """What its node has to be told now, if anything. Its id follows from the disk, so that a report can be matched to it."""
    operation = disk.operation
    match disk.state:
        case DiskState.PROVISIONING:
            body = DiskProvision(
                volume_id=disk.volume_id,
                size_mb=disk.size_mb,
                filesystem=disk.filesystem,
                source_volume_id=disk.source.volume_id if disk.source else None,
                source_snapshot=disk.source.snapshot if disk.source else None,
            )
            return _order(control, project, disk, Verb.DISK_PROVISION, body, disk.volume_id)
        case DiskState.DELETING:
            return _order(control, project, disk, Verb.DISK_REMOVE, DiskTarget(volume_id=disk.volume_id), disk.volume_id, disk.attempt)
        case DiskState.PROVISIONED if operation is not None and operation.kind == "grow":
            grow = DiskGrow(volume_id=disk.volume_id, size_mb=operation.size_mb or 0)
            return _order(control, project, disk, Verb.DISK_GROW, grow, operation.command)
        case DiskState.PROVISIONED if operation is not None:
            verb = Verb.DISK_SNAPSHOT if operation.kind == "snapshot" else Verb.DISK_SNAPSHOT_REMOVE
            kept = DiskSnapshot(volume_id=disk.volume_id, snapshot=operation.snapshot or "")
            return _order(control, project, disk, verb, kept, operation.command)
        case _:
            return None


def _order(control: Control, project: str, disk: Disk, verb: Verb, body: Any, salt: str, attempt: int = 1) -> Order:
    process = (Disk.TOPIC, disk.id)
    return control.new_order(verb, project, process, body.model_dump(mode="json"), key=disk.volume_id, attempt=attempt, salt=salt)


async def pump(control: Control, project: str, name: str) -> None:
    """Send what is due; give up what is too old; see to whoever waits for the disk or has left it."""
    disk = await control.find(Disk, project, name)
    if disk is None or disk.state is DiskState.DELETED:
        return
    node = control.fleet.nodes.get(disk.node_id)
    if node is not None and node.evicted:
        await _lose(control, project, disk)
        return
    await disk_leases.settle(control, project, disk)
    disk = await control.get(Disk, project, name)
    if await _expired(control, project, disk) or not _due(control, disk):
        return
    if (order := order_of(control, project, disk)) is not None:
        await control.order(disk.node_id, order)
    if disk.operation is not None:
        await control.set_timer(project, Disk.TOPIC, disk.id, TIMER, disk.operation.deadline, disk.version)


def _due(control: Control, disk: Disk) -> bool:
    """A removal that failed is not tried again at once."""
    return disk.state is not DiskState.DELETING or disk.attempt == 1 or control.clock() - disk.modified_on >= REMOVE_AGAIN


async def _lose(control: Control, project: str, disk: Disk) -> None:
    """Its node was evicted: leases there are over by decision, and so is the disk."""
    cause = control.own_cause(project, "disk", disk.id, "lost", disk.volume_id, disk.version)
    failure = Failure(code="disk.node-lost", message=f"node {disk.node_id} was evicted, and the disk was there")
    parts: Parts = [part(Disk, project, disk.id, lambda d: d.lose(cause.at, failure))]
    if disk.holder is not None:
        identifier = lease_id(disk.holder, disk.id)
        parts.append(part(DiskLease, project, identifier, lambda item: item.release(cause.at, "node-evicted")))
    await control.store.transact_many(parts, cause)


async def _expired(control: Control, project: str, disk: Disk) -> bool:
    """Nothing stays busy for ever (design.md §10.4). What the node says later of an operation that was given up is no news."""
    now, operation = control.clock(), disk.operation
    late = Failure(code="node.offline", message=f"node {disk.node_id} did not answer in time", retryable=True)
    if disk.state is DiskState.PROVISIONING and now - disk.since > timedelta(seconds=control.deadlines.job_s):
        cause = control.own_cause(project, "disk", disk.id, "expire", disk.volume_id)
        await control.change(Disk, project, disk.id, cause, lambda d: d.fail(cause.at, disk.volume_id, late))
        return True
    if operation is not None and now > operation.deadline:
        cause = control.own_cause(project, "disk", disk.id, "expire", operation.command)
        await control.change(Disk, project, disk.id, cause, lambda d: d.operation_failed(cause.at, operation.command, late))
        return True
    return False
