"""A machine that was started again: the starts of sandboxes that its agent had begun there are not taken up again.

Nothing of a sandbox outlives its machine, and its start does not wait for the disk: the journal may know of an order whose end the bus has
stored, and whose sandbox everybody believes to run (docs/adr/0021). Only the lane knows whether it is still to be done. So what was begun
is cleared away before the host is looked at; the account of what lives then tells that it is gone, and what the lane still has begins anew.
"""

from __future__ import annotations

import structlog

from agents.host import processes
from agents.node import LocalNode
from agents.records import machine_entry, unbegun_entry
from agents.teardown import LeftError, take_down
from domain.nodes.orders import Order, Verb

log = structlog.get_logger(__name__)


async def notice(node: LocalNode) -> None:
    """To be called before anything is adopted or resumed. A journal that does not say where it was written is taken to be of today."""
    before, here = node.memory.machine, processes.boot_id()
    if before not in {"", here}:
        for trail in [trail for trail in node.memory.orders.values() if trail.order.verb is Verb.SANDBOX_PROVISION]:
            await _clear_away(node, trail.order)
    if before != here:
        node.journal.write(machine_entry(here))


async def _clear_away(node: LocalNode, order: Order) -> None:
    sandbox_id = str(order.body.get("sandbox_id", ""))
    log.warning("reboot.start-given-up", order=order.id, sandbox=sandbox_id)
    record = node.find(sandbox_id)
    if record is not None and record.condition == "starting":
        try:
            await take_down(node, sandbox_id, for_ever=False)
        except LeftError as error:
            log.warning("reboot.left", sandbox=sandbox_id, left=error.left, error=error.failure.message)
            node.put(record.model_copy(update={"condition": "doomed"}))
    node.journal.write(unbegun_entry(order.id))
