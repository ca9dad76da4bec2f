"""The disks of ``sandbox.create``: where they put the sandbox, and that it gets them, or waits for them, or is refused."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from bus.store import Part
from domain.disks.disk import Disk, require_there
from domain.disks.lease import DiskLease, lease_id
from domain.kernel.errors import Refused
from domain.sandboxes.commands import SandboxCreate
from domain.sandboxes.spec import DiskUse, SandboxSpec
from handlers.control import Control, Parts, part
from handlers.dispatch import Asked
from handlers.processes.disk_leases import settle


async def placed(control: Control, project: str, command: SandboxCreate) -> SandboxCreate:
    """The command, meant for the node that has its disks. Raises ``disk.not-found``, ``disk.apart`` and ``disk.elsewhere``."""
    nodes = {}
    for mount in command.disks:
        disk = require_there(await control.find(Disk, project, mount.disk), mount.disk)
        await settle(control, project, disk)
        nodes[mount.disk] = disk.node_id
    node, *others = sorted(set(nodes.values()))
    if others:
        raise Refused("disk.apart", "the disks are on different nodes", details={"nodes": nodes})
    if command.node not in {None, node}:
        raise Refused("disk.elsewhere", f"its disks are on node {node}", details={"nodes": nodes})
    return command.model_copy(update={"node": node})


def uses(command: SandboxCreate) -> tuple[DiskUse, ...]:
    """What the sandbox's specification keeps of them."""
    return tuple(DiskUse(**mount.model_dump()) for mount in command.disks)


def require_driver(control: Control, spec: SandboxSpec, node_id: str) -> None:
    """Raises ``sandbox.unsupported`` where the driver mounts no disks: refused, never pretended (design.md §7)."""
    node = control.fleet.nodes.get(node_id)
    driver = spec.driver or (node.drivers[0] if node and node.drivers else "")
    if spec.disks and node is not None and "disks" not in node.flags.get(driver, ()):
        raise Refused(
            "sandbox.unsupported",
            f"driver {driver} mounts no disks: choose another driver for the template",
            details={"fields": ["disks"], "driver": driver, "nodes": [node_id]},
        )


async def parts(control: Control, asked: Asked, sandbox_id: str, spec: SandboxSpec) -> Parts:
    """Each disk lent, at once if it is free, and each lease; to be stored with the sandbox or not at all. Raises ``disk.busy``."""
    found: Parts = []
    for use in spec.disks:
        disk = require_there(await control.find(Disk, asked.project, use.disk), use.disk)
        epochs: list[int] = []
        lend = partial(_lend, sandbox_id=sandbox_id, epochs=epochs, asked=asked)
        lease = partial(_lease, sandbox_id=sandbox_id, use=use, volume_id=disk.volume_id, node_id=disk.node_id, epochs=epochs, asked=asked)
        found.append(part(Disk, asked.project, disk.id, lend))
        found.append(Part(DiskLease, asked.project, lease_id(sandbox_id, disk.id), lease))
    return found


def _lend(disk: Disk, *, sandbox_id: str, epochs: list[int], asked: Asked) -> None:
    disk.lend(asked.cause.at, sandbox_id)
    disk.attach(asked.cause.at, sandbox_id)
    epochs[:] = [disk.epoch] if disk.bound and disk.holder == sandbox_id else []


def _lease(
    known: DiskLease | None, *, sandbox_id: str, use: DiskUse, volume_id: str, node_id: str, epochs: list[int], asked: Asked
) -> DiskLease:
    at = asked.cause.at
    deadline = at + timedelta(seconds=use.lease_timeout_s)
    identifier = lease_id(sandbox_id, use.disk)
    lease = known or DiskLease.create(identifier, at, volume_id, node_id, use.mount_path, deadline, use.read_only)
    for epoch in epochs:
        lease.bind(at, epoch)
    return lease
