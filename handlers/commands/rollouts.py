"""``rollout.*``: nodes that are to run other versions (domain/nodes/rollout.py)."""

from __future__ import annotations

from bus.endpoints import Reply
from domain.kernel.ids import SYSTEM_PROJECT, rollout_id
from domain.nodes import commands as c
from domain.nodes.orders import Versions
from domain.nodes.placement import require_known
from domain.nodes.rollout import Rollout, RolloutState
from handlers.control import Control
from handlers.dispatch import Asked


async def start(control: Control, asked: Asked, command: c.RolloutStart) -> Reply:
    """Begin one. Raises ``node.not-found`` for a node that nobody has enrolled."""
    identifier = rollout_id(asked.project, asked.command_id)
    require_known(command.nodes, control.fleet.nodes)
    nodes = tuple(sorted(set(command.nodes) or {n.node_id for n in control.fleet.nodes.values() if not n.evicted}))
    versions = Versions(guest_image=command.guest_image, agent=command.agent, kernel=command.kernel)

    def decide(rollout: Rollout | None) -> Rollout:
        return rollout or Rollout.create(identifier, asked.cause.at, nodes, versions, command.at_once, command.stop_after_s)

    await control.store.transact(Rollout, SYSTEM_PROJECT, identifier, decide, asked.cause)

    async def over() -> bool:
        return (await control.get(Rollout, SYSTEM_PROJECT, identifier)).state is not RolloutState.RUNNING

    settled = await over()
    if command.wait_s and not settled:
        async with asked.idle():
            settled = await control.waiting.until(Rollout.TOPIC, SYSTEM_PROJECT, identifier, over, command.wait_s)
    state = (await control.get(Rollout, SYSTEM_PROJECT, identifier)).state
    seq = await control.position(Rollout, SYSTEM_PROJECT, identifier)
    return Reply({"rollout_id": identifier, "state": state.value, "settled": settled}, identifier, seq)


async def cancel(control: Control, asked: Asked, command: c.RolloutCancel) -> Reply:
    """End it early. Raises ``rollout.not-found``, and ``rollout.illegal-state`` for one that is over."""
    done = await control.change(Rollout, SYSTEM_PROJECT, command.rollout_id, asked.cause, lambda r: r.cancel(asked.cause.at))
    return Reply({"rollout_id": command.rollout_id}, command.rollout_id, done.seq)
