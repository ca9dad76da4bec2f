"""``node.*`` and ``compat.rescan``: machines that join, rest and leave, and a fresh look at what they run and hold."""

from __future__ import annotations

from collections.abc import Callable

from bus.endpoints import Reply
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, derived
from domain.nodes import commands as c
from domain.nodes.node import Node
from domain.nodes.orders import Order, Report, Verb
from domain.nodes.placement import require_known
from domain.nodes.sweeps import Holdings, Swept
from domain.templates.commands import CompatRescan
from domain.templates.compat import Compat, Policy, evaluate
from handlers.control import Control
from handlers.dispatch import Asked
from handlers.processes import orphans


async def enroll(control: Control, asked: Asked, command: c.NodeEnroll) -> Reply:
    """Make a node known; its agent may then say hello."""

    def decide(node: Node | None) -> Node:
        if node is None:
            return Node.create(command.node_id, asked.cause.at)
        node.enroll(asked.cause.at)
        return node

    done = await control.store.transact(Node, SYSTEM_PROJECT, command.node_id, decide, asked.cause)
    return Reply({"node_id": command.node_id}, command.node_id, done.seq)


async def evict(control: Control, asked: Asked, command: c.NodeEvict) -> Reply:
    """Never believe this node again, until it is enrolled anew."""
    return await _change(control, asked, command.node_id, lambda n: n.evict(asked.cause.at))


async def cordon(control: Control, asked: Asked, command: c.NodeCordon) -> Reply:
    """No new sandboxes here."""
    return await _change(control, asked, command.node_id, lambda n: n.cordon(asked.cause.at))


async def uncordon(control: Control, asked: Asked, command: c.NodeUncordon) -> Reply:
    """New sandboxes again."""
    return await _change(control, asked, command.node_id, lambda n: n.uncordon(asked.cause.at))


async def drain(control: Control, asked: Asked, command: c.NodeDrain) -> Reply:
    """No new sandboxes, and the ones here shall go (handlers/processes/nodes.py)."""
    return await _change(control, asked, command.node_id, lambda n: n.drain(asked.cause.at, command.stop_after_s))


async def configure(control: Control, asked: Asked, command: c.NodeConfigure) -> Reply:
    """Labels, and how much may be promised there."""
    given = {"cpu": command.cpu_ratio, "memory": command.memory_ratio, "sandboxes": command.sandboxes_ratio}
    ratios = {name: ratio for name, ratio in given.items() if ratio is not None}
    return await _change(control, asked, command.node_id, lambda n: n.configure(asked.cause.at, command.labels, ratios))


async def _change(control: Control, asked: Asked, node_id: str, decide: Callable[[Node], object]) -> Reply:
    done = await control.change(Node, SYSTEM_PROJECT, node_id, asked.cause, decide)
    return Reply({"node_id": node_id}, node_id, done.seq)


async def rescan(control: Control, asked: Asked, command: CompatRescan) -> Reply:
    """Ask nodes what they run now; the matrix follows from what they answer. ``changed`` counts replicas whose compat is another after."""
    healthy = [n.node_id for n in control.fleet.healthy_nodes()]
    wanted = healthy if command.all else sorted(command.nodes)
    require_known(wanted, control.fleet.nodes)
    before = _compat(control, wanted)
    settled = await _inspect(control, asked, [n for n in wanted if n in healthy], command.wait_s or control.deadlines.exec_slack_s)
    after = _compat(control, wanted)
    changed = sum(1 for cell, compat in after.items() if before.get(cell) is not compat)
    return Reply({"changed": changed, "settled": settled}, None, control.fleet.seq)


async def sweep(control: Control, asked: Asked, command: c.NodeSweep) -> Reply:
    """Have the node say what it holds, judge that, and have it take away what is nobody's. With ``dry_run`` only tell."""
    require_known([command.node_id], control.fleet.nodes)
    if not control.fleet.nodes[command.node_id].healthy:
        raise Refused("node.offline", f"node {command.node_id} is not there", retryable=True)
    seconds = command.wait_s or control.deadlines.exec_slack_s
    listing = control.new_order(Verb.NODE_LIST, SYSTEM_PROJECT, ("node", command.node_id), {}, key=_key(command), salt=asked.command_id)
    said = await _answer(control, asked, command.node_id, listing, seconds)
    if said is None or said.error is not None:
        raise Refused("node.offline", f"node {command.node_id} did not say what it holds", retryable=True)
    held = Holdings.model_validate(said.body)
    if held.unlisted:
        raise Refused("node.unlisted", f"node {command.node_id} could not list {', '.join(held.unlisted)}", retryable=True)
    due = await orphans.judge(control, command.node_id, held)
    swept = Swept(trigger="command", removed=orphans.removals(due))
    settled = command.dry_run or due.empty
    if not settled:
        order = orphans.order(control, command.node_id, due, asked.command_id)
        answer = await _answer(control, asked, command.node_id, order, seconds)
        settled = answer is not None
        swept = swept if answer is None or answer.error is not None else Swept.model_validate(answer.body)
    result = c.SweepAccepted(node_id=command.node_id, dry_run=command.dry_run, settled=settled, **swept.model_dump(exclude={"trigger"}))
    return Reply(result.model_dump(mode="json"), command.node_id, await control.position(Node, SYSTEM_PROJECT, command.node_id))


def _key(command: c.NodeSweep) -> str:
    return f"node/{command.node_id}"


async def _answer(control: Control, asked: Asked, node_id: str, order: Order, seconds: float) -> Report | None:
    """The node's last word about an order; None when it has none within ``seconds``."""
    future = control.results.expect(order.id)
    await control.ask(node_id, order)
    try:
        async with asked.idle():
            return future.result() if await control.results.all_of([future], seconds) else None
    finally:
        control.results.forget(order.id)


async def _inspect(control: Control, asked: Asked, nodes: list[str], seconds: float) -> bool:
    """Have nodes say again what they are, and have the fleet index know it; False when not all did within ``seconds``."""
    answers = {node: control.results.expect(_order_id(asked, node)) for node in nodes}
    for node in nodes:
        order = control.new_order(Verb.NODE_INSPECT, SYSTEM_PROJECT, ("node", node), {}, key=f"node/{node}", salt=asked.command_id)
        await control.ask(node, order.model_copy(update={"id": _order_id(asked, node)}))
    try:
        async with asked.idle():
            settled = await control.results.all_of(list(answers.values()), seconds)
    finally:
        for node in nodes:
            control.results.forget(_order_id(asked, node))
    for node in nodes:
        await control.fleet.reached(await control.position(Node, SYSTEM_PROJECT, node))
    return settled


def _order_id(asked: Asked, node_id: str) -> str:
    return derived(asked.project, asked.command_id, "inspect", node_id)


def _compat(control: Control, nodes: list[str]) -> dict[tuple[str, str], Compat]:
    fleet = control.fleet
    return {
        key: evaluate(replica.bound, fleet.nodes[key[1]].versions, fleet.policies.get(key[0], Policy.STRICT))
        for key, replica in fleet.replicas.items()
        if key[1] in nodes and replica.state == "READY"
    }
