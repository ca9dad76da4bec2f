"""Reports about disks. One that answers another order than the one that is due is stale."""

from __future__ import annotations

from typing import Final

from domain.disks.disk import Disk
from domain.kernel.command import Cause
from domain.nodes.orders import DiskProvisioned, DiskSnapshotTaken, Report, ReportKind, Verb
from handlers.control import Control
from handlers.processes import disks
from handlers.reporting.taking import Taker, failure_of


async def _answered(control: Control, report: Report) -> Disk | None:
    """The disk, if it waits for this answer."""
    disk = await control.find(Disk, report.project, report.process_id)
    order = None if disk is None else disks.order_of(control, report.project, disk)
    final = report.kind in {ReportKind.DONE, ReportKind.FAILED}
    return disk if final and order is not None and order.id == report.order else None


async def _provisioned(control: Control, report: Report, cause: Cause) -> None:
    disk = await _answered(control, report)
    if disk is None:
        return

    def decide(d: Disk) -> None:
        if report.kind is ReportKind.DONE:
            made = DiskProvisioned.model_validate(report.body)
            d.provisioned(cause.at, disk.volume_id, made.kind, made.quota)
        else:
            d.fail(cause.at, disk.volume_id, failure_of(report))

    await control.change(Disk, report.project, disk.id, cause, decide)


async def _operated(control: Control, report: Report, cause: Cause) -> None:
    disk = await _answered(control, report)
    operation = None if disk is None else disk.operation
    if disk is None or operation is None:
        return

    def decide(d: Disk) -> None:
        if report.kind is ReportKind.FAILED:
            d.operation_failed(cause.at, operation.command, failure_of(report))
        elif operation.kind == "snapshot":
            d.operation_done(cause.at, operation.command, DiskSnapshotTaken.model_validate(report.body).size_bytes)
        else:
            d.operation_done(cause.at, operation.command)

    await control.change(Disk, report.project, disk.id, cause, decide)


async def _removed(control: Control, report: Report, cause: Cause) -> None:
    disk = await _answered(control, report)
    if disk is None:
        return

    def decide(d: Disk) -> None:
        if report.kind is ReportKind.DONE:
            d.deleted(cause.at, disk.volume_id)
        else:
            d.delete_failed(cause.at, report.attempt, failure_of(report))

    await control.change(Disk, report.project, disk.id, cause, decide)


TAKERS: Final[dict[str, Taker]] = {
    Verb.DISK_PROVISION: _provisioned,
    Verb.DISK_GROW: _operated,
    Verb.DISK_SNAPSHOT: _operated,
    Verb.DISK_SNAPSHOT_REMOVE: _operated,
    Verb.DISK_REMOVE: _removed,
}
