"""Moves rollouts: a node at a time, or a few, is drained, upgraded by whoever does that, mended, and opened (domain/nodes/rollout.py).

Level-triggered: every call looks at the nodes, their sandboxes and their replicas as they are. Only the oldest rollout that runs is moved,
and a control plane moves one process at a time, so that two nodes are never taken up on the strength of each other's replicas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from domain.kernel import ids
from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.nodes.node import Liveness, Node, Scheduling
from domain.nodes.rollout import AT_WORK, NodeStep, Rollout, RolloutState
from domain.nodes.safety import next_node
from domain.templates.compat import Compat, Policy, evaluate
from domain.templates.job import Job
from domain.templates.template import GONE, Template
from handlers.control import Control
from handlers.fleet_entries import NodeEntry, ReplicaEntry
from handlers.processes.attempts import another_attempt

SYSTEM = ids.SYSTEM_PROJECT


async def pump(control: Control, project: str, rollout_id: str) -> None:
    """Do what is due for a rollout."""
    rollout = await control.find(Rollout, project, rollout_id)
    if rollout is None:
        return
    if rollout.state is RolloutState.CANCELLED:
        for node_id in rollout.at_step(*AT_WORK):
            await _open(control, rollout_id, node_id)
    oldest = next((key for key in control.fleet.open if key[0] == Rollout.TOPIC), None)
    if rollout.state is not RolloutState.RUNNING or oldest != (Rollout.TOPIC, project, rollout_id):
        return
    for node_id in rollout.at_step(*AT_WORK):
        await _work(control, rollout_id, node_id)
    rollout = await control.get(Rollout, project, rollout_id)
    while rollout.state is RolloutState.RUNNING and len(rollout.at_step(*AT_WORK)) < rollout.at_once:
        waiting = [n for n in rollout.at_step(NodeStep.WAITING) if not await _needless(control, rollout, n)]
        waiting.sort(key=lambda n: not control.fleet.nodes[n].healthy)  # one that nobody hears would keep the others waiting
        chosen, held_by = next_node(waiting, usable(control, rollout))
        await _change(control, rollout_id, "hold", *held_by, decide=partial(Rollout.hold, templates=tuple(held_by)))
        if chosen is None:
            break
        await _move(control, rollout_id, chosen, NodeStep.DRAINING)
        await _work(control, rollout_id, chosen)
        rollout = await control.get(Rollout, project, rollout_id)
    await _change(control, rollout_id, "complete", decide=Rollout.complete)


def usable(control: Control, rollout: Rollout) -> dict[str, set[str]]:
    """Template id -> nodes that are open, not taken up by the rollout, and hold a ready replica that is not STALE."""
    found: dict[str, set[str]] = defaultdict(set)
    taken = set(rollout.at_step(*AT_WORK))
    for (template, node_id), replica in control.fleet.replicas.items():
        node = control.fleet.nodes.get(node_id)
        if node is None or node_id in taken or not node.healthy or node.scheduling != Scheduling.OPEN:
            continue
        if replica.state == "READY" and _judged(control, replica, node) is not Compat.STALE:
            found[template].add(node_id)
    return found


def _judged(control: Control, replica: ReplicaEntry, node: NodeEntry) -> Compat:
    return evaluate(replica.bound, node.versions, control.fleet.policies.get(replica.template_id, Policy.STRICT))


async def _needless(control: Control, rollout: Rollout, node_id: str) -> bool:
    """One that was evicted is left out, and one that runs the versions already, with nothing stale on it, is done."""
    node = control.fleet.nodes.get(node_id)
    if node is None or node.evicted:
        await _move(control, rollout.id, node_id, NodeStep.SKIPPED)
        return True
    if not rollout.fits(node.versions) or any(r.state == "READY" for r in _unfit(control, node)):
        return False
    await _move(control, rollout.id, node_id, NodeStep.DONE)
    return True


async def _work(control: Control, rollout_id: str, node_id: str) -> None:
    """Bring a node as far as it goes at this moment."""
    rollout, node = await control.get(Rollout, SYSTEM, rollout_id), control.fleet.nodes.get(node_id)
    if node is None or node.evicted:
        await _move(control, rollout_id, node_id, NodeStep.SKIPPED)
        return
    if rollout.nodes[node_id] is NodeStep.DRAINING:
        await _drain(control, rollout, node_id)
        if node.sandboxes > 0:
            return
        await _move(control, rollout_id, node_id, NodeStep.UPGRADING)
    if not node.healthy or not rollout.fits(node.versions):
        return
    await _move(control, rollout_id, node_id, NodeStep.MENDING)
    if all([await _mended(control, rollout_id, replica, node) for replica in _unfit(control, node)]):
        await _open(control, rollout_id, node_id)
        await _move(control, rollout_id, node_id, NodeStep.DONE)


async def _drain(control: Control, rollout: Rollout, node_id: str) -> None:
    """No new sandboxes there, also when somebody has opened it meanwhile; and the index has to know, before its sandboxes are counted."""
    node = await control.get(Node, SYSTEM, node_id)
    if node.scheduling is not Scheduling.DRAINING:
        cause = control.own_cause(SYSTEM, "node", node_id, "drain", rollout.id, node.version)
        await control.change(Node, SYSTEM, node_id, cause, lambda n: n.drain(cause.at, rollout.stop_after_s))
    await control.fleet.reached(await control.position(Node, SYSTEM, node_id))


def _unfit(control: Control, node: NodeEntry) -> list[ReplicaEntry]:
    """Replicas there that are not ready, or stale, by template."""
    here = [nodes[node.node_id] for _, nodes in sorted(control.fleet.by_template.items()) if node.node_id in nodes]
    return [r for r in here if r.state != "READY" or _judged(control, r, node) is Compat.STALE]


async def _mended(control: Control, rollout_id: str, replica: ReplicaEntry, node: NodeEntry) -> bool:
    """Have a stale one made again, once; one that was not ready before is not the rollout's. Another job at its template is waited for."""
    project = replica.project
    cause = control.own_cause(project, "rollout", rollout_id, "redo", replica.template_id, node.node_id)
    job_id = ids.job_id(project, cause.command)
    job = await control.find(Job, project, job_id)
    if job is None:
        return replica.state != "READY" or not await _made_again(control, rollout_id, replica, cause, job_id)
    if job.active:
        return False
    await control.fleet.reached(await control.position(Job, project, job_id))
    if replica.state == "READY" and _judged(control, replica, node) is not Compat.STALE:
        return True
    await _fail(control, rollout_id, replica, f"job {job_id} left it {replica.state}")
    return False


async def _made_again(control: Control, rollout_id: str, replica: ReplicaEntry, cause: Cause, job_id: str) -> bool:
    """Begin to; False when there is no such template any more."""
    template = await control.find(Template, replica.project, replica.template_id)
    if template is None or template.state in GONE:
        return False
    if template.active_job is not None:
        return True
    try:
        parts = await another_attempt(control, replica.project, template, cause.at, job_id, "NODES", (replica.node_id,))
        await control.store.transact_many(parts, cause)
    except Refused as refusal:
        if not refusal.retryable:
            await _fail(control, rollout_id, replica, refusal.message)
    return True


async def _open(control: Control, rollout_id: str, node_id: str) -> None:
    """Sandboxes again."""
    node = await control.get(Node, SYSTEM, node_id)
    if node.scheduling is not Scheduling.OPEN and node.liveness is not Liveness.EVICTED:
        cause = control.own_cause(SYSTEM, "node", node_id, "open", rollout_id, node.version)
        await control.change(Node, SYSTEM, node_id, cause, lambda n: n.uncordon(cause.at))
    await control.fleet.reached(await control.position(Node, SYSTEM, node_id))


async def _move(control: Control, rollout_id: str, node_id: str, step: NodeStep) -> None:
    await _change(control, rollout_id, node_id, step, decide=partial(Rollout.move, node_id=node_id, step=step))


async def _fail(control: Control, rollout_id: str, replica: ReplicaEntry, error: str) -> None:
    say = partial(Rollout.fail, node_id=replica.node_id, template_id=replica.template_id, error=error)
    await _change(control, rollout_id, "fail", decide=say)


async def _change(control: Control, rollout_id: str, *parts: str, decide: Callable[..., object]) -> None:
    """Let the rollout decide. Its version belongs to the cause: the same step can be news twice (``hold``)."""
    version = (await control.get(Rollout, SYSTEM, rollout_id)).version
    cause = control.own_cause(SYSTEM, "rollout", rollout_id, *parts, version)
    await control.change(Rollout, SYSTEM, rollout_id, cause, lambda rollout: decide(rollout, at=cause.at))
