"""``sandbox-commit``: a running sandbox's disk as an ext4 file, from which templates are made (reference/cubesandbox.md §4.2)."""

from __future__ import annotations

import hashlib

from agents.drivers.driver import TakesDisk
from agents.failures import fail
from agents.task import Task, attempt
from agents.verbs.power import current
from agents.verbs.snapshots import frozen
from domain.nodes.orders import BuildProgress, SandboxCommit, SandboxCommitted


async def commit(task: Task, body: SandboxCommit) -> SandboxCommitted:
    """Copy the disk, frozen meanwhile where the driver can, and pack the copy while the sandbox goes on.

    What is copied has a name that follows from the order, so that the same order finds, and in the end removes, what a crash left.
    Raises ``template.commit-unsupported`` for a driver whose sandboxes have disk images, and ``FencedError`` when a destroy comes first.
    """
    node = task.node
    name = "commit-" + hashlib.sha256(task.order.id.encode()).hexdigest()[:24]

    async def take() -> SandboxCommitted:
        record = current(node, body.sandbox_id, body.generation)
        if isinstance(node.drivers.pick(record.driver), TakesDisk):
            raise fail("template.commit-unsupported", f"driver {record.driver} keeps a disk that cannot be packed", driver=record.driver)
        async with frozen(node, record):
            await node.roots.snapshot(record.id, name)
        root = await node.roots.create(name, record.spec.artifact.artifact_id, name)
        task.progress(BuildProgress(phase="BUILDING_EXT4"))
        return await node.images.pack(root, body.disk_mb, task.order.id, task.progress)

    try:
        return await task.guarded(body.sandbox_id, take())
    finally:
        await attempt(node.roots.remove(name))
        await attempt(node.roots.remove_snapshot(name))
