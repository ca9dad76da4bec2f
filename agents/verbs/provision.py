"""``sandbox-provision`` and ``sandbox-destroy``: the beginning and the end of a sandbox on this node."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from agents.drivers.driver import TakesIdentity
from agents.failures import FailedError, fail
from agents.node import Doom, LocalNode
from agents.provisioning import CREATE_SANDBOX, CREATE_SANDBOX_WITH_DISKS, Bringup, Up, Wanted
from agents.records import SandboxRecord
from agents.steps import UnwoundError
from agents.task import Task
from agents.teardown import take_down
from domain.nodes.orders import (
    PortStatus,
    ProvisionFailed,
    SandboxProvision,
    SandboxRunning,
    SandboxStopped,
    SandboxTarget,
    Steps,
)
from domain.sandboxes.spec import SandboxSpec

log = structlog.get_logger(__name__)

DESTROY_PAUSES_S: Final = (0.2, 1.0)
"""Between tries at a teardown that fails; after them the control plane is told, and the sweep goes on trying."""


async def provision(task: Task, body: SandboxProvision) -> SandboxRunning:
    """Bring it up, or leave nothing behind. One that is already up, by an earlier attempt, is adopted."""
    node, spec = task.node, SandboxSpec.model_validate(body.spec)
    known = _known(node, body)
    if known is not None and not task.trail.touched:
        if known.condition in {"running", "paused"}:
            return running(known)
        await node.journal.sync()
        await take_down(node, known.id, for_ever=False)  # what an earlier attempt left, or could not undo
        if known.condition == "exited":
            raise fail("sandbox.startup-failed", f"it exited with code {known.exit_code}", exit_code=known.exit_code)
        known = None
    record = known or SandboxRecord(
        id=body.sandbox_id,
        project=task.order.project,
        generation=body.generation,
        spec=spec,
        driver=node.drivers.pick(spec.driver).name,
        issuer=body.issuer if isinstance(node.drivers.pick(spec.driver), TakesIdentity) else "",
        disks=body.disks,
    )
    try:
        record, ports = await bring_up(task, record)
    except UnwoundError as unwound:
        raise _failed(unwound, task, await task.account.close()) from unwound
    node.stock.wish(record)
    node.runtime_line(record.id, f"running, driver {record.driver}, generation {record.generation}")
    rest = await task.account.close()
    return running(record, ports, rest)


def _known(node: LocalNode, body: SandboxProvision) -> SandboxRecord | None:
    if body.sandbox_id in node.memory.buried:
        raise fail("sandbox.superseded", f"sandbox {body.sandbox_id} was destroyed")
    known = node.find(body.sandbox_id)
    if known is not None and known.generation > body.generation:
        raise fail("sandbox.stale-generation", f"sandbox {known.id} is at generation {known.generation}", generation=known.generation)
    return known


async def bring_up(task: Task, record: SandboxRecord) -> tuple[SandboxRecord, tuple[PortStatus, ...]]:
    """Run the steps. The record is written down before the first, and says "running" after the last. Raises ``UnwoundError``.

    Whatever the steps touch can be found again by its id when this process has died; when the machine has, nothing of it is there.
    """
    node = task.node
    if node.find(record.id) is None:
        node.put(record)
    bringup = Bringup(node, node.drivers.pick(record.driver), task.account.since)
    with node.fenced(record.id) as fence:
        node.cuts.also(task.order, fence)
        try:
            saga = CREATE_SANDBOX_WITH_DISKS if record.disks else CREATE_SANDBOX
            up = await task.saga(saga, bringup, Wanted(box=record), fence, Up)
        except UnwoundError as unwound:
            node.runtime_line(record.id, f"not started: {task.account.failed_step}: {unwound.failure.message}")
            _note_failure(node, record, task, unwound)
            raise
    update = {"condition": "running", "handle": up.handle, "address": up.address}
    return came_up(node, record.model_copy(update=update), up.ports), up.ports


def came_up(node: LocalNode, record: SandboxRecord, ports: tuple[PortStatus, ...]) -> SandboxRecord:
    """Write down that it runs, and what is told of its ports, so that only what changes is told again."""
    if ports:
        node.served[record.id, record.generation] = ports
    return node.put(record.model_copy(update={"bound": {port.port: port.bound for port in ports if port.bound is not None}}))


def _note_failure(node: LocalNode, record: SandboxRecord, task: Task, unwound: UnwoundError) -> None:
    if not unwound.left:
        node.drop(record.id, for_ever=False)
        return
    log.error("provision.left-behind", sandbox=record.id, steps=unwound.left, why=unwound.undo_failure and unwound.undo_failure.message)
    handle = task.account.outputs.get("start", {}).get("handle")
    node.put(record.model_copy(update={"condition": "doomed", "handle": handle, "owed": task.order}))


def _failed(unwound: UnwoundError, task: Task, rest: Steps) -> FailedError:
    body = ProvisionFailed(first=rest.first, steps=rest.steps, failed_step=task.account.failed_step, uncompensated=unwound.left)
    return FailedError(unwound.failure, body.model_dump(mode="json"))


def running(record: SandboxRecord, ports: tuple[PortStatus, ...] = (), rest: Steps | None = None) -> SandboxRunning:
    """The report of a sandbox that runs."""
    ports = ports or tuple(PortStatus(port=port, address=record.address) for port in record.spec.recipe.ports)
    told = rest or Steps(first=0, steps=())
    return SandboxRunning(
        driver=record.driver,
        address=record.address,
        ports=ports,
        generation=record.generation,
        first=told.first,
        steps=told.steps,
    )


async def destroy(task: Task, body: SandboxTarget) -> SandboxStopped:
    """Stop it and remove every trace. Gentleness ends ``grace_s`` after the order was accepted, also over a restart of the agent."""
    node, sandbox_id = task.node, body.sandbox_id
    doom = node.dooms.get(sandbox_id) or Doom()
    spent = (node.clock() - task.trail.accepted).total_seconds()
    record = node.find(sandbox_id)
    for pause in (*DESTROY_PAUSES_S, None):
        try:
            exit_ = await take_down(node, sandbox_id, max(0.0, body.grace_s - spent), doom.hurry)
        except Exception as error:
            log.warning("destroy.failed", sandbox=sandbox_id, again_in_s=pause, error=repr(error)[:500])
            if pause is None:
                if record is not None:
                    node.put(record.model_copy(update={"condition": "doomed", "owed": task.order}))
                raise
            await asyncio.sleep(pause)
            spent = body.grace_s
        else:
            break
    ended = None if record is None else record.exited_at
    return SandboxStopped(exit_code=None if exit_ is None else exit_.code, exited_at=ended or node.clock())
