"""``sandbox-restart``: the main process again, in the root that is there, under a new generation.

It goes through the driver's own start, and never takes one from stock: what is held there has a root of its own.
"""

from __future__ import annotations

from typing import Final

from agents.drivers.driver import MapsUsers, TakesDisk
from agents.failures import FailedError, fail
from agents.node import LocalNode
from agents.provisioning import Bringup, Rooted, Served, ToServe, Up, Wanted, serve
from agents.records import SandboxRecord
from agents.steps import UnwoundError
from agents.task import Task
from agents.verbs.provision import came_up, running
from agents.verbs.snapshots import Restarted, ToStartAgain, halt, start_again, stays_ended
from domain.kernel.saga import Action, Nothing, NoUndo, define
from domain.nodes.orders import SandboxRestart, SandboxRunning


async def _same_root(b: Bringup, wanted: Wanted) -> Rooted:
    """Making a root that is there changes nothing of it."""
    ids = b.driver.ids if isinstance(b.driver, MapsUsers) else 0
    artifact, snapshot = wanted.box.spec.artifact.artifact_id, wanted.box.spec.snapshot_id
    return Rooted(path=str(await b.node.roots.create(wanted.box.id, artifact, snapshot, disk=isinstance(b.driver, TakesDisk), ids=ids)))


async def _restart(b: Bringup, ready: ToStartAgain) -> Restarted:
    return await start_again(b, ready, None)


RESTART_SANDBOX: Final = define(
    "restart-sandbox",
    1,
    Wanted,
    Action("halt", Wanted, Nothing, halt, NoUndo("its program has ended already")),
    Action("root", Wanted, Rooted, _same_root, NoUndo("it stays for the next time, and goes with the sandbox"), after=("halt",)),
    Action("restart", ToStartAgain, Restarted, _restart, stays_ended),
    Action("ready", ToServe, Served, serve, NoUndo("it only looks")),
)


async def restart(task: Task, body: SandboxRestart) -> SandboxRunning:
    """Up again. After a failure it is as it was, ended, and may be tried again under a generation greater still."""
    node, outputs = task.node, task.account.outputs
    record = node.get(body.sandbox_id)
    if record.generation == body.generation and record.condition in {"running", "paused"}:
        return running(record, Served.model_validate(outputs["ready"]).ports if "ready" in outputs else ())
    if record.condition != "replacing":
        record = _begin(node, record, body.generation)
    elif record.generation != body.generation:
        raise fail("sandbox.stale-generation", f"sandbox {record.id} is at generation {record.generation}", generation=record.generation)
    bringup = Bringup(node, node.drivers.pick(record.driver), task.account.since)
    try:
        with node.fenced(record.id) as fence:
            up = await task.saga(RESTART_SANDBOX, bringup, Wanted(box=record), fence, Up)
    except UnwoundError as unwound:
        node.put(record.model_copy(update={"condition": "exited", "handle": None, "exited_at": node.clock()}))
        raise FailedError(unwound.failure) from unwound
    update = {"condition": "running", "handle": up.handle, "address": up.address}
    record = came_up(node, record.model_copy(update=update), up.ports)
    node.runtime_line(record.id, f"started again, generation {record.generation}")
    return running(record, up.ports)


def _begin(node: LocalNode, record: SandboxRecord, generation: int) -> SandboxRecord:
    if generation <= record.generation:
        raise fail("sandbox.stale-generation", f"sandbox {record.id} is at generation {record.generation}", generation=record.generation)
    if record.condition != "exited":
        raise fail("sandbox.still-runs", f"sandbox {record.id} is {record.condition}", condition=record.condition)
    new = {"condition": "replacing", "generation": generation, "exit_code": None, "exited_at": None, "stop_requested_at": None}
    return node.put(record.model_copy(update=new))
