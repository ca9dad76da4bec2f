"""``order-cancel``: a job was cancelled, and what it has on this node is cut off."""

from __future__ import annotations

from agents.task import Task
from domain.nodes.orders import OrderCancel


async def cancel(task: Task, body: OrderCancel) -> None:
    """Done when what was cut off at its arrival has ended: if the agent dies before, it comes again, after the orders it is about."""
    await task.node.cuts.over(body)
