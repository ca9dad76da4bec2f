"""What follows from a node's draining, and from its eviction, for what is on it.

When the time that a drain gave is over, what still runs is stopped, as gently as by ``sandbox.stop``. An evicted node never answers again:
its replicas are lost by decision, and not by missing information (design.md §10.5), so that templates do not promise what is not there.
"""

from __future__ import annotations

from functools import partial

from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.node import Liveness, Node
from domain.sandboxes.sandbox import Sandbox
from domain.templates.replica import Replica
from domain.templates.snapshot import NODE_EVICTED, Snapshot
from domain.templates.template import Template
from handlers.control import Control
from handlers.fleet_entries import ReplicaEntry, SandboxEntry

TIMER = "drain"


async def pump(control: Control, project: str, node_id: str) -> None:
    """Do what is due for a node."""
    node = await control.find(Node, project, node_id)
    if node is None:
        return
    if node.liveness is Liveness.EVICTED:
        await _forget_replicas(control, node)
        await _forget_snapshots(control, node)
    elif node.stop_at is not None:
        await _drain(control, node)


async def _drain(control: Control, node: Node) -> None:
    """Stop what is there if it is time, else have the timer say when it is."""
    if node.stop_at is not None and not node.must_be_empty(control.clock()):
        await control.set_timer(SYSTEM_PROJECT, Node.TOPIC, node.id, TIMER, node.stop_at, node.version)
        return
    for entry in [e for e in control.fleet.sandboxes.values() if e.node_id == node.id]:
        await _stop(control, entry)


async def _stop(control: Control, entry: SandboxEntry) -> None:
    cause = control.own_cause(entry.project, "sandbox", entry.sandbox_id, "drained")
    decide = partial(Sandbox.request_stop, at=cause.at, command_id=cause.command, reason="node_drained")
    await control.change(Sandbox, entry.project, entry.sandbox_id, cause, decide)


async def _forget_replicas(control: Control, node: Node) -> None:
    for entry in [e for (_, on), e in control.fleet.replicas.items() if on == node.id]:
        identifier = replica_id(entry.template_id, node.id)
        cause = control.own_cause(entry.project, "replica", identifier, "lost", node.version)
        await control.change(Replica, entry.project, identifier, cause, partial(Replica.lost, at=cause.at, error="its node was evicted"))
        await _recount(control, entry, node)


async def _forget_snapshots(control: Control, node: Node) -> None:
    """What was only there is lost; what is stored, or on another node too, has one place less."""
    for project, identifier in sorted(control.fleet.snapshots_on.get(node.id, ())):
        cause = control.own_cause(project, "snapshot", identifier, "lost", node.id, node.version)
        decide = partial(Snapshot.lost, at=cause.at, error="its node was evicted", node_id=node.id, code=NODE_EVICTED)
        await control.change(Snapshot, project, identifier, cause, decide)


async def _recount(control: Control, lost: ReplicaEntry, node: Node) -> None:
    """The template's status by all its replicas; one at which a job is at work says that itself, at its end."""
    entries = list(control.fleet.by_template.get(lost.template_id, {}).values())
    here = [e for e in entries if (on := control.fleet.nodes.get(e.node_id)) is None or not on.evicted]
    ready = sum(e.state == "READY" for e in here)
    failed = sum(e.state == "FAILED" for e in here) + len(entries) - len(here)
    cause = control.own_cause(lost.project, "template", lost.template_id, "recount", node.id, node.version)

    def recount(template: Template) -> None:
        template.replicas_changed(cause.at, ready, failed, len(entries), f"node {node.id} was evicted")

    await control.change(Template, lost.project, lost.template_id, cause, recount)
