"""``disk-…``: disks made, grown, kept as they are, removed. Mounting them is a step of a provisioning (``agents/volumes/step.py``)."""

from __future__ import annotations

from agents.task import Task
from domain.nodes.orders import DiskGrow, DiskProvision, DiskProvisioned, DiskSnapshot, DiskSnapshotTaken, DiskTarget


async def provision(task: Task, body: DiskProvision) -> DiskProvisioned:
    """Make it, unless it is there."""
    source = None
    if body.source_volume_id is not None and body.source_snapshot is not None:
        source = (body.source_volume_id, body.source_snapshot)
    await task.node.volumes.create(body.volume_id, body.size_mb, body.filesystem, source)
    image = body.filesystem is not None
    return DiskProvisioned(kind="image" if image else "directory", quota=image)


async def grow(task: Task, body: DiskGrow) -> None:
    await task.node.volumes.grow(body.volume_id, body.size_mb)


async def snapshot(task: Task, body: DiskSnapshot) -> DiskSnapshotTaken:
    """Keep it as it is, frozen for that moment where it is mounted."""
    return DiskSnapshotTaken(size_bytes=await task.node.volumes.snapshot(body.volume_id, body.snapshot))


async def remove_snapshot(task: Task, body: DiskSnapshot) -> None:
    await task.node.volumes.remove_snapshot(body.volume_id, body.snapshot)


async def remove(task: Task, body: DiskTarget) -> None:
    """Let it go; one that is not here is gone already."""
    await task.node.volumes.remove(body.volume_id)
