"""``node-inspect``: look at the node again, and say what it is."""

from __future__ import annotations

from agents.task import Task
from domain.nodes.orders import NodeInspect


async def inspect(task: Task, body: NodeInspect) -> None:
    """Answered by an observation, and by this order's own end."""
    del body
    await task.node.hello()
