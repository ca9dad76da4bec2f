"""``sandbox-commit``: a running sandbox's disk as an ext4 file, from which templates are made (reference/cubesandbox.md §4.2)."""

from __future__ import annotations

import hashlib
from functools import partial

from agents.drivers.driver import CanSnapshot, TakesDisk
from agents.failures import fail
from agents.task import Task, attempt
from agents.verbs.power import current
from agents.verbs.snapshots import frozen
from domain.nodes.orders import BuildProgress, SandboxCommit, SandboxCommitted


async def commit(task: Task, body: SandboxCommit) -> SandboxCommitted:
    """Copy the disk, frozen meanwhile where the driver can, and pack the copy while the sandbox goes on.

    What is copied has a name that follows from the order, so that the same order finds, and in the end removes, what a crash left.
    A disk image is taken as it is: only guests ever look into what a guest has written, so the template is for the same driver.
    Raises ``template.commit-unsupported`` for a driver that cannot freeze its disks, and ``FencedError`` when a destroy comes first.
    """
    node = task.node
    name = "commit-" + hashlib.sha256(task.order.id.encode()).hexdigest()[:24]

    async def take() -> SandboxCommitted:
        record = current(node, body.sandbox_id, body.generation)
        driver, artifact = node.drivers.pick(record.driver), record.spec.artifact.artifact_id
        if not isinstance(driver, TakesDisk):
            async with frozen(node, record):
                await node.roots.snapshot(record.id, name)
            root = await node.roots.create(name, artifact, name)
        elif isinstance(driver, CanSnapshot):
            await node.roots.snapshot(record.id, name, partial(driver.snapshot, node.handle(record), settled=True))
            await node.roots.create(name, artifact, name, disk=True)
            root = await node.roots.flatten(name)
        else:
            raise fail("template.commit-unsupported", f"driver {record.driver} cannot freeze its disks", driver=record.driver)
        task.progress(BuildProgress(phase="BUILDING_EXT4"))
        return await node.images.pack(root, body.disk_mb, task.order.id, task.progress)

    try:
        return await task.guarded(body.sandbox_id, take())
    finally:
        await attempt(node.roots.remove(name))
        await attempt(node.roots.remove_snapshot(name))
