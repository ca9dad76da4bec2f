"""``node-inspect``: look at the node again, and say what it is."""

from __future__ import annotations

from agents.task import Task
from domain.nodes.orders import NodeHello, NodeInspect


async def inspect(task: Task, body: NodeInspect) -> NodeHello:
    """Versions are read anew, so that a rescan sees what was changed under the agent."""
    del body
    return await task.node.hello()
