"""The action of a provisioning that mounts a sandbox's disks, and what a driver is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agents.drivers.driver import Driver, Mount
from agents.failures import fail
from agents.volumes import places

if TYPE_CHECKING:
    from agents.node import LocalNode
    from agents.records import SandboxRecord


async def attach(node: LocalNode, driver: Driver, record: SandboxRecord) -> None:
    """Have every disk mounted that the sandbox was granted. Raises ``disk.unsupported-driver``, and what ``Volumes.attach`` does."""
    if record.disks and "disks" not in driver.flags:
        raise fail("disk.unsupported-driver", f"driver {driver.name} mounts no disks", driver=driver.name)
    for grant in record.disks:
        await node.volumes.attach(grant.volume_id, record.id, grant.epoch)


def mounts_of(node: LocalNode, record: SandboxRecord, root: Path) -> tuple[Mount, ...]:
    """What the driver is to show, with places for it in the root."""
    for grant in record.disks:
        places.make(root, grant.mount_path, node.roots.ids(record.id))
    return tuple(Mount(node.volumes.place(grant.volume_id), grant.mount_path, grant.read_only) for grant in record.disks)
