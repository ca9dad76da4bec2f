"""Convergence: a node gets the replicas that it lacks, a few at a time (domain/templates/convergence.py says which).

Level-triggered: asked when a node, a template or a replica changes, and from time to time. Each replica has a job of its own, which does
not occupy the template: it can be redone and deleted meanwhile, and whoever takes the replica over ends that job.
"""

from __future__ import annotations

from bus.store import Part
from domain.kernel.ids import SYSTEM_PROJECT, job_id, replica_id
from domain.templates.convergence import Want, due, may_retry
from domain.templates.job import Job, Operation
from domain.templates.replica import Replica
from handlers.control import Control
from handlers.fleet import Key
from handlers.fleet_entries import NodeEntry
from handlers.wants import TemplateEntry

KIND = "convergence"
"""The type in the keys of this process; its id is a node's."""
MAKING = frozenset({"PENDING", "DISTRIBUTING", "DISTRIBUTED", "SNAPSHOTTING"})


def key(node_id: str) -> Key:
    """The process of a node."""
    return (KIND, SYSTEM_PROJECT, node_id)


def keys(control: Control) -> list[Key]:
    """The processes of all nodes that may be given something."""
    return [key(node.node_id) for node in control.fleet.healthy_nodes() if node.scheduling == "OPEN"]


async def pump(control: Control, project: str, node_id: str) -> None:
    """Begin for a node what is due."""
    del project
    node = control.fleet.nodes.get(node_id)
    if node is None or not node.healthy or node.scheduling != "OPEN" or not node.drivers:
        return
    being_made = {replica_id(t, on) for (t, on), e in control.fleet.replicas.items() if on == node_id and e.state in MAKING}
    making = len(being_made | control.fleet.wants.converging[node_id])
    lacking = [_want(control, entry) for entry in control.fleet.wants.templates.values() if _lacks(control, node, entry)]
    for want in due(lacking, making):
        await _begin(control, node, want)


def _lacks(control: Control, node: NodeEntry, template: TemplateEntry) -> bool:
    if not template.spreads or (template.scope and node.node_id not in template.scope):
        return False
    if template.driver is not None and template.driver not in node.drivers:
        return False
    if replica_id(template.template_id, node.node_id) in control.fleet.wants.converging[node.node_id]:
        return False
    here = control.fleet.replicas.get((template.template_id, node.node_id))
    if here is None:
        return True
    broken = control.fleet.wants.broken.get(replica_id(template.template_id, node.node_id))
    if here.state != "FAILED" or broken is None:
        return False
    return may_retry(broken.at, broken.failures, control.fleet.wants.online_since.get(node.node_id), control.clock())


def _want(control: Control, template: TemplateEntry) -> Want:
    entries = control.fleet.by_template.get(template.template_id, {}).values()
    on = [control.fleet.nodes[e.node_id] for e in entries if (e.state in MAKING or e.state == "READY") and e.node_id in control.fleet.nodes]
    return Want(
        template_id=template.template_id,
        project=template.project,
        priority=template.priority,
        minimum=template.minimum,
        maximum=template.maximum,
        there=sum(not node.evicted for node in on),
        near=sum(node.healthy for node in on),
    )


async def _begin(control: Control, node: NodeEntry, want: Want) -> None:
    """The job, once for each state of the replica; and wait until the index has it, so that the next look counts it."""
    identifier = replica_id(want.template_id, node.node_id)
    replica = await control.find(Replica, want.project, identifier)
    cause = control.own_cause(want.project, "replica", identifier, "converge", 0 if replica is None else replica.version)
    job = job_id(want.project, cause.command)

    def create(known: Job | None) -> Job:
        return known or Job.create(job, cause.at, Operation.CONVERGE, "template", want.template_id, targets=(node.node_id,))

    done = await control.store.transact_many([Part(Job, want.project, job, create)], cause)
    await control.fleet.reached(done[0].seq)
