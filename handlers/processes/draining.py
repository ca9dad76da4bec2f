"""Draining: what still runs on a node when the time that its drain gave is over is stopped, as gently as by ``sandbox.stop``."""

from __future__ import annotations

from functools import partial

from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.sandboxes.sandbox import Sandbox
from handlers.control import Control
from handlers.fleet import SandboxEntry

TIMER = "drain"


async def pump(control: Control, project: str, node_id: str) -> None:
    """Stop what is there if it is time, else have the timer say when it is. An uncordon in between ends it."""
    node = await control.find(Node, project, node_id)
    if node is None or node.stop_at is None:
        return
    if not node.must_be_empty(control.clock()):
        await control.set_timer(SYSTEM_PROJECT, Node.TOPIC, node_id, TIMER, node.stop_at, node.version)
        return
    for entry in [e for e in control.fleet.sandboxes.values() if e.node_id == node_id]:
        await _stop(control, entry)


async def _stop(control: Control, entry: SandboxEntry) -> None:
    cause = control.own_cause(entry.project, "sandbox", entry.sandbox_id, "drained")
    decide = partial(Sandbox.request_stop, at=cause.at, command_id=cause.command, reason="node_drained")
    await control.change(Sandbox, entry.project, entry.sandbox_id, cause, decide)
