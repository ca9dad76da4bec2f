"""``sandbox-snapshot``, ``sandbox-rollback``, ``snapshot-remove``: sandboxes at one moment, and the way back to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final, Literal

import structlog

from agents.drivers.driver import CanPause, CanSnapshot, RuntimeFault
from agents.failures import FailedError, fail
from agents.namefiles import tell_names
from agents.node import LocalNode
from agents.provisioning import Bringup, Rooted, Served, Started, ToServe, Up, Wanted, serve, spec_of, wire_of
from agents.records import SandboxRecord
from agents.steps import UnwoundError
from agents.stocking import forget
from agents.task import Task, attempt
from agents.verbs.power import current
from agents.verbs.provision import came_up, running
from agents.watching import unwatch
from domain.kernel.saga import Action, Nothing, NoUndo, define
from domain.nodes.orders import (
    SandboxRollback,
    SandboxRunning,
    SandboxSnapshot,
    SnapshotExport,
    SnapshotExported,
    SnapshotRemove,
    SnapshotTaken,
)

log = structlog.get_logger(__name__)


async def snapshot(task: Task, body: SandboxSnapshot) -> SnapshotTaken:
    """Save memory and disk where the driver can, else copy the disk, frozen meanwhile if it can be.

    A crash in between leaves it frozen, and adoption thaws it.
    """
    node = task.node
    record = current(node, body.sandbox_id, body.generation)
    driver = node.drivers.pick(record.driver)

    async def take() -> int:
        if isinstance(driver, CanSnapshot):
            return await node.roots.snapshot(record.id, body.snapshot_id, partial(driver.snapshot, node.handle(record)))
        async with frozen(node, record):
            return await node.roots.snapshot(record.id, body.snapshot_id)

    try:
        size = await task.guarded(record.id, take())
    except BaseException:
        if body.snapshot_id not in (await node.roots.list()).snapshots:
            await attempt(node.roots.remove_snapshot(body.snapshot_id))  # half of one is none
        raise
    memory = node.roots.memory(body.snapshot_id)
    holds: tuple[Literal["disk", "memory"], ...] = ("disk",) if memory is None else ("disk", "memory")
    needs = driver.needs(memory) if memory is not None and isinstance(driver, CanSnapshot) else ""
    return SnapshotTaken(size_bytes=size, holds=holds, versions=node.versions(), needs=needs)


@asynccontextmanager
async def frozen(node: LocalNode, record: SandboxRecord) -> AsyncIterator[None]:
    """Frozen inside the block, if it can be; as before afterwards, whatever happens to the block."""
    driver = node.drivers.pick(record.driver)
    if record.condition == "paused" or not isinstance(driver, CanPause) or "pause" not in driver.flags:
        yield
        return
    handle = node.handle(record)
    try:
        await driver.pause(handle)
        node.crash.here("freeze:after")
        yield
    finally:
        await asyncio.shield(driver.resume(handle))


async def remove(task: Task, body: SnapshotRemove) -> None:
    """Forget it; one that is not here is forgotten already."""
    await forget(task.node, lambda model: model.spec.snapshot_id == body.snapshot_id)
    await task.node.roots.remove_snapshot(body.snapshot_id)


async def export(task: Task, body: SnapshotExport) -> SnapshotExported:
    """Store it for everybody. Nothing of it changes here."""
    try:
        return await task.node.vault.send(task.node.roots, task.order.project, body.snapshot_id)
    except RuntimeFault as fault:
        if fault.code != "snapshot.not-found":
            raise
        raise fail(fault.code, f"snapshot {body.snapshot_id} is not on node {task.node.name}", id=body.snapshot_id) from fault


# ------------------------------------------------------------------------------------------------------------ rollback


class Back(Wanted):
    """What a rollback is given. ``box`` is already of the new generation."""

    snapshot_id: str


class ToStartAgain(Wanted, Rooted):
    pass


class ToRestart(Back, ToStartAgain):
    pass


class Restarted(Started):
    address: str


async def halt(b: Bringup, wanted: Wanted) -> Nothing:
    """End the old machine. Its exit is our doing and nobody is told of it."""
    unwatch(b.node, wanted.box.id)
    await b.driver.destroy(wanted.box.id)
    return Nothing()


async def _restore(b: Bringup, back: Back) -> Rooted:
    return Rooted(path=str(await b.node.roots.rollback(back.box.id, back.snapshot_id)))


async def _restart(b: Bringup, ready: ToRestart) -> Restarted:
    return await start_again(b, ready, ready.snapshot_id)


async def start_again(b: Bringup, ready: ToStartAgain, snapshot_id: str | None) -> Restarted:
    """Under the generation that is on record. ``snapshot_id``: whose memory to go on with, if it holds one; None: from the beginning."""
    attached = await b.node.network.attach(ready.box.id, ready.box.spec.egress)
    async with b.node.creating:
        spec = spec_of(b.node, ready.box, Path(ready.path), wire_of(attached), snapshot_id)
        tell_names(spec, ready.box.project)
        handle = await b.driver.start(spec)
    return Restarted(handle=asdict(handle), address=attached.address)


async def stays_ended(b: Bringup, ready: ToStartAgain) -> None:
    """There is no way back to the old machine: what half came up is ended. When it is a rollback, the order says that this was fatal."""
    await b.driver.destroy(ready.box.id)


ROLLBACK_SANDBOX: Final = define(
    "rollback-sandbox",
    1,
    Back,
    Action("halt", Back, Nothing, halt, NoUndo("there is no way back to the old machine")),
    Action("restore", Back, Rooted, _restore, NoUndo("the disk goes with the sandbox"), after=("halt",)),
    Action("restart", ToRestart, Restarted, _restart, stays_ended),
    Action("ready", ToServe, Served, serve, NoUndo("it only looks")),
)


async def rollback(task: Task, body: SandboxRollback) -> SandboxRunning:
    """The sandbox as it was at the snapshot, under a new generation. ``fatal`` in a failure: the old machine is gone, no new one came."""
    node = task.node
    record = node.get(body.sandbox_id)
    if record.condition != "replacing" and "ready" in task.account.outputs:  # an agent that died before it could say so has done it
        return running(record, Served.model_validate(task.account.outputs["ready"]).ports)
    if record.condition != "replacing":
        record = await _begin(node, record, body, task.order.project)
    elif record.generation != body.generation:
        raise fail("sandbox.stale-generation", f"sandbox {record.id} is at generation {record.generation}", generation=record.generation)
    bringup = Bringup(node, node.drivers.pick(record.driver), task.account.since)
    try:
        with node.fenced(record.id) as fence:
            up = await task.saga(ROLLBACK_SANDBOX, bringup, Back(box=record, snapshot_id=body.snapshot_id), fence, Up)
    except UnwoundError as unwound:
        node.put(record.model_copy(update={"condition": "exited", "handle": None, "exit_code": None, "exited_at": node.clock()}))
        raise FailedError(unwound.failure, {"fatal": True}) from unwound
    update = {"condition": "running", "handle": up.handle, "address": up.address, "snapshot_id": body.snapshot_id}
    record = came_up(node, record.model_copy(update=update), up.ports)
    node.runtime_line(record.id, f"rolled back to {body.snapshot_id}, generation {record.generation}")
    return running(record, up.ports)


async def _begin(node: LocalNode, record: SandboxRecord, body: SandboxRollback, project: str) -> SandboxRecord:
    """Everything that can be refused is refused before anything is touched; a stored snapshot that was lost here is fetched before, too."""
    if body.generation <= record.generation:
        raise fail("sandbox.stale-generation", f"sandbox {record.id} is at generation {record.generation}", generation=record.generation)
    if record.condition not in {"running", "paused"}:
        raise fail("sandbox.not-running", f"sandbox {record.id} is {record.condition}", condition=record.condition)
    try:
        there = body.snapshot_id in (await node.roots.list()).snapshots
    except RuntimeFault as fault:
        raise fail(fault.code, str(fault), retryable=True) from fault
    if not there and body.snapshot_manifest is not None:
        await node.vault.ensure(node.roots, project, body.snapshot_id, record.spec.artifact.artifact_id, body.snapshot_manifest)
    elif not there:
        raise fail("snapshot.not-found", f"snapshot {body.snapshot_id} is not on node {node.name}", id=body.snapshot_id)
    return node.put(record.model_copy(update={"condition": "replacing", "generation": body.generation}))
