"""What a failed creation left on its node: told to be undone until it is, until a person gives it up, or until the node is evicted.

The node tries by itself and says how that went (``agents/sweeping.py``); this is for the one that has fallen silent about it, or whose
agent has forgotten (reference/miren-sandbox.md §2.6).
"""

from __future__ import annotations

from domain.nodes.orders import Verb
from domain.sandboxes.provisioning import Provisioning
from domain.sandboxes.sandbox import Sandbox
from handlers.control import Control
from handlers.processes.sandboxes import Due, order_of


async def pump(control: Control, project: str, sandbox_id: str) -> None:
    """Do for an undo that is not finished what is due now."""
    saga = await control.find(Provisioning, project, sandbox_id)
    if saga is None or not saga.unwinding:
        return
    node = control.fleet.nodes.get(saga.node_id)
    if node is not None and node.evicted:
        cause = control.own_cause(project, "provisioning", sandbox_id, "node-lost")
        await control.change(Provisioning, project, sandbox_id, cause, lambda p: p.lose_node(cause.at))
    elif node is not None and node.healthy and saga.retry_due(control.clock()):
        await _again(control, project, saga)


async def _again(control: Control, project: str, saga: Provisioning) -> None:
    """Tell the node to take everything of the sandbox down. The order first: its id follows from the attempt that is recorded then.

    Only a person unblocks what a report has blocked meanwhile.
    """
    sandbox = await control.get(Sandbox, project, saga.id)
    attempt = saga.attempt + 1
    body = {"sandbox_id": saga.id, "generation": sandbox.generation, "grace_s": 0}
    await control.order(saga.node_id, order_of(control, project, sandbox, Due(Verb.SANDBOX_DESTROY, body, "undo", attempt)))
    cause = control.own_cause(project, "provisioning", saga.id, "retry", attempt)
    await control.change(Provisioning, project, saga.id, cause, lambda p: p.retry(cause.at, attempt) if p.retry_due(cause.at) else None)
