"""``disk.*``: disks made, grown, kept, removed, and taken from whoever has them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from bus.endpoints import Reply
from domain.disks import commands as c
from domain.disks.disk import Disk, require_there
from domain.disks.states import DiskState, Filesystem, Source
from domain.kernel import ids
from domain.kernel.errors import Refused, not_found
from domain.nodes.orders import Failure
from domain.nodes.placement import require_known
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.commands.snapshots import storage_gate
from handlers.control import Control, unchanged
from handlers.dispatch import Asked
from handlers.fleet_entries import NodeEntry
from handlers.processes.disk_leases import settle

DIRECTORY: Final = "directory"
"""What a node says that has no rights to make file systems."""
PREFERRED: Final[Filesystem] = "ext4"


async def create(control: Control, asked: Asked, command: c.DiskCreate) -> Reply:
    """Make one; its node is told by its process. Raises ``disk.exists``, ``disk.unsupported``, ``storage.blocked``."""
    volume_id = ids.volume_id(asked.project, asked.command_id)
    known = await control.find(Disk, asked.project, command.name)
    if known is not None and known.volume_id == volume_id:  # a repetition is not planned again
        await control.change(Disk, asked.project, command.name, asked.cause, unchanged)
    else:
        await _request(control, asked, command, volume_id)

    def made(disk: Disk) -> bool:
        return disk.state is not DiskState.PROVISIONING

    disk, settled = await _settled(control, asked, command, made)
    if command.wait_s and disk.state is DiskState.ERROR and disk.failure is not None:
        raise disk.failure.refusal({"disk": disk.id})
    return await _reply(control, asked, disk, settled)


async def _request(control: Control, asked: Asked, command: c.DiskCreate, volume_id: str) -> None:
    node_id, filesystem, source = await _plan(control, asked.project, command)
    storage_gate(control, node_id)

    def decide(disk: Disk | None) -> Disk:
        if disk is None:
            return Disk.create(command.name, asked.cause.at, volume_id, node_id, command.size_mb, filesystem, source)
        disk.recreate(asked.cause.at, volume_id, node_id, command.size_mb, filesystem, source)
        return disk

    await control.store.transact(Disk, asked.project, command.name, decide, asked.cause)


async def _plan(control: Control, project: str, command: c.DiskCreate) -> tuple[str, Filesystem | None, Source | None]:
    """Node, file system (None: a directory), and what it is made of."""
    if command.source is None:
        return (*_choose(control, command), None)
    origin = require_there(await control.find(Disk, project, command.source.disk), command.source.disk)
    kept = origin.snapshot(command.source.snapshot)
    if kept.size_mb > command.size_mb:
        raise Refused("disk.cannot-shrink", f"the snapshot has {kept.size_mb} MiB", details={"size_mb": kept.size_mb})
    if command.node not in {None, origin.node_id}:
        raise Refused("disk.elsewhere", f"disk {origin.id} is on node {origin.node_id}", details={"nodes": {origin.id: origin.node_id}})
    if command.filesystem not in {None, origin.filesystem}:
        raise Refused("disk.unsupported", f"the snapshot is {origin.filesystem or DIRECTORY}", details={"filesystem": origin.filesystem})
    source = Source(volume_id=origin.volume_id, disk=origin.id, snapshot=kept.name)
    return origin.node_id, origin.filesystem, source


def _choose(control: Control, command: c.DiskCreate) -> tuple[str, Filesystem | None]:
    """The node that can and has the fewest disks. Without a wish, one that makes file systems goes before one that does not."""
    nodes = _candidates(control, command.node)
    wanted = command.filesystem or PREFERRED
    able = [node for node in nodes if wanted in node.disks]
    if able:
        return _emptiest(control, able), wanted
    plain = [node for node in nodes if DIRECTORY in node.disks]
    if command.filesystem is None and plain:
        return _emptiest(control, plain), None
    details = {"filesystem": wanted, "nodes": {node.node_id: list(node.disks) for node in nodes}}
    raise Refused("disk.unsupported", f"no node can make a disk with {wanted}", details=details)


def _candidates(control: Control, node_id: str | None) -> list[NodeEntry]:
    if node_id is None:
        return [node for node in control.fleet.healthy_nodes() if node.scheduling == "OPEN"]
    require_known([node_id], control.fleet.nodes)
    node = control.fleet.nodes[node_id]
    if not node.healthy:
        raise Refused("node.offline", f"node {node_id} is offline", retryable=not node.evicted, details={"node": node_id})
    return [node]


def _emptiest(control: Control, nodes: list[NodeEntry]) -> str:
    return min(nodes, key=lambda node: (len(control.fleet.lending.on_node.get(node.node_id, ())), node.node_id)).node_id


async def grow(control: Control, asked: Asked, command: c.DiskGrow) -> Reply:
    """Make it bigger, also while it is used."""
    return await _operate(
        control, asked, command, lambda d, until: d.request_grow(asked.cause.at, asked.command_id, command.size_mb, until)
    )


async def snapshot(control: Control, asked: Asked, command: c.DiskSnapshot) -> Reply:
    """Keep it as it is now."""

    def decide(disk: Disk, until: datetime) -> None:
        storage_gate(control, disk.node_id)
        disk.request_snapshot(asked.cause.at, asked.command_id, command.snapshot, until)

    return await _operate(control, asked, command, decide)


async def delete_snapshot(control: Control, asked: Asked, command: c.DiskDeleteSnapshot) -> Reply:
    """Let a snapshot go."""
    at, command_id = asked.cause.at, asked.command_id
    return await _operate(control, asked, command, lambda d, until: d.request_snapshot_removal(at, command_id, command.snapshot, until))


async def delete(control: Control, asked: Asked, command: c.DiskDelete) -> Reply:
    """Remove it. What a sandbox has left by now is no obstacle."""
    await settle(control, asked.project, await _there(control, asked.project, command.name))
    await control.change(Disk, asked.project, command.name, asked.cause, lambda d: d.request_delete(asked.cause.at, asked.command_id))
    disk, settled = await _settled(control, asked, command, lambda disk: disk.state is DiskState.DELETED)
    return await _reply(control, asked, disk, settled)


async def release(control: Control, asked: Asked, command: c.DiskRelease) -> Reply:
    """End the lease of whoever has it. Raises ``disk.busy`` for one that is wanted, unless forced: then its sandbox is deleted."""
    disk = await _there(control, asked.project, command.name)
    user = disk.holder or disk.attached
    if user is None:
        return Reply({"disk_id": disk.id, "settled": True}, disk.id, await control.position(Disk, asked.project, disk.id))
    sandbox = await control.find(Sandbox, asked.project, user)
    if sandbox is not None and sandbox.state not in {SandboxState.STOPPED, SandboxState.DEAD}:
        if not command.force:
            raise Refused("disk.busy", f"sandbox {user} is {sandbox.state.value}: stop it, or force it", details={"sandbox_id": user})
        await control.change(Sandbox, asked.project, user, asked.cause, lambda s: s.request_delete(asked.cause.at, asked.command_id))
    await settle(control, asked.project, await _there(control, asked.project, command.name))
    _, settled = await _settled(control, asked, command, lambda d: user not in {d.holder, d.attached})
    seq = await control.position(Disk, asked.project, disk.id)
    return Reply({"disk_id": disk.id, "sandbox_id": user, "settled": settled}, disk.id, seq)


async def _there(control: Control, project: str, name: str) -> Disk:
    return require_there(await control.find(Disk, project, name), name)


async def _operate(control: Control, asked: Asked, command: c.Named, decide: Callable[[Disk, datetime], None]) -> Reply:
    """One thing done to a disk by its node, and the wait for it. Raises why it failed, if that is known within ``wait_s``."""
    until = asked.cause.at + timedelta(seconds=control.deadlines.operation_s)
    await control.change(Disk, asked.project, command.name, asked.cause, lambda d: decide(d, until))

    def over(disk: Disk) -> bool:
        return disk.operation is None or disk.operation.command != asked.command_id

    disk, settled = await _settled(control, asked, command, over)
    if command.wait_s and settled:
        await _raise_failure(control, asked, command.name)
    return await _reply(control, asked, disk, settled)


async def _raise_failure(control: Control, asked: Asked, name: str) -> None:
    for commit in reversed(await control.store.read(asked.project, Disk.TOPIC, name)):
        for event in commit.events:
            if event["type"] == "disk.operation-failed" and event["data"]["command"] == asked.command_id:
                raise Failure.model_validate(event["data"]["failure"]).refusal({"disk": name})


async def _settled(control: Control, asked: Asked, command: c.Named, so: Callable[[Disk], bool]) -> tuple[Disk, bool]:
    """The disk, as soon as it is so, or the caller has waited long enough."""

    async def settled() -> bool:
        found = await control.find(Disk, asked.project, command.name)
        return found is not None and so(found)

    done = await asked.wait(control, Disk.TOPIC, command.name, settled, command.wait_s)
    disk = await control.find(Disk, asked.project, command.name)
    if disk is None:
        raise not_found(Disk.TOPIC, command.name)
    return disk, done


async def _reply(control: Control, asked: Asked, disk: Disk, settled: bool) -> Reply:
    said = {"disk_id": disk.id, "status": disk.state.value, "node_id": disk.node_id, "size_mb": disk.size_mb, "settled": settled}
    return Reply(said, disk.id, await control.position(Disk, asked.project, disk.id))
