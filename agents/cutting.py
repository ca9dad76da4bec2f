"""Orders that can be cut off: those that a cancelled job has on this node (``order-cancel``).

An order can be cut off from its arrival on, before its turn has come too; one that arrives after the ``order-cancel`` is none of its
business. Cutting off is fencing (``fence.py``): what has been done is undone, and the order fails as ``order.cancelled``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from agents.fence import Fence
from domain.nodes.orders import Order, OrderCancel, Verb

CUTTABLE: Final = frozenset({Verb.IMAGE_RESOLVE, Verb.ARTIFACT_BUILD, Verb.SANDBOX_COMMIT, Verb.REPLICA_DISTRIBUTE, Verb.REPLICA_PREPARE})


@dataclass(frozen=True, slots=True)
class _Open:
    """``cut`` is closed when the order is cut off, and ``also`` with it; ``over`` when it has ended."""

    order: Order
    cut: Fence = field(default_factory=Fence)
    over: Fence = field(default_factory=Fence)
    also: list[Fence] = field(default_factory=list)


class Cuts:
    """The orders of this kind that have arrived and not ended."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    def opened(self, order: Order) -> Fence:
        """It has arrived. The fence is closed when it is cut off."""
        known = self._open.get(order.id) or _Open(order)
        if order.verb in CUTTABLE:
            self._open[order.id] = known
        return known.cut

    def also(self, order: Order, fence: Fence) -> None:
        """Close this too when the order is cut off, or is already: what stands behind it undoes itself."""
        known = self._open.get(order.id)
        if known is not None:
            known.also.append(fence)
            if known.cut.closed:
                fence.close()

    def ended(self, order: Order) -> None:
        """It has ended, one way or the other."""
        known = self._open.pop(order.id, None)
        if known is not None:
            known.over.close()

    def cut(self, cancel: Order) -> None:
        """An ``order-cancel`` has arrived: cut off what came before it, for its process and up to its attempt."""
        with contextlib.suppress(ValidationError):  # refused when its turn comes
            for known in self._about(OrderCancel.model_validate(cancel.body)):
                for fence in (known.cut, *known.also):
                    fence.close()

    async def over(self, body: OrderCancel) -> None:
        """Wait until what was cut off has ended."""
        for known in self._about(body):
            if known.cut.closed:
                await known.over.wait()

    async def let_go(self, artifact_id: str) -> None:
        """Wait until what was cut off while it made a replica of this artifact has ended, and uses it no more."""
        for known in list(self._open.values()):
            used = known.order.body.get("artifact")
            if known.cut.closed and isinstance(used, dict) and used.get("artifact_id") == artifact_id:
                await known.over.wait()

    def _about(self, body: OrderCancel) -> list[_Open]:
        about = [known for known in self._open.values() if (known.order.process, known.order.process_id) == (body.process, body.process_id)]
        return [known for known in about if body.attempt is None or known.order.attempt <= body.attempt]
