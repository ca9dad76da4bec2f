"""Answers of orders that go back to a caller and not into the log: the output of ``sandbox.exec``.

Reports are shared out among control planes, so the one that reads the report need not be the one whose caller waits, nor the only one:
a command that is repeated while it runs may be waited for in several. It tells all of them on a core subject; whoever waits takes it.
"""

from __future__ import annotations

import asyncio

from bus.broadcast import Broadcast
from domain.nodes.orders import Report

SUBJECT = "strand.result"


class Results:
    """Futures by order id, completed by whichever control plane reads the report."""

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self._waiting: dict[str, asyncio.Future[Report]] = {}

    async def start(self) -> None:
        """Begin to listen."""
        await self._broadcast.listen(SUBJECT, self._take)

    def expect(self, order_id: str) -> asyncio.Future[Report]:
        """A future for the report of that order; forget it with :meth:`forget`. Call it before the order is sent."""
        return self._waiting.setdefault(order_id, asyncio.get_running_loop().create_future())

    async def all_of(self, futures: list[asyncio.Future[Report]], seconds: float) -> bool:
        """True when every one of them is there within ``seconds``."""
        if not futures:
            return True
        _, late = await asyncio.wait(futures, timeout=seconds)
        return not late

    def forget(self, order_id: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(order_id, None)

    async def publish(self, report: Report) -> None:
        """Hand a report to whoever waits for it, here and elsewhere."""
        self._complete(report)
        await self._broadcast.say(SUBJECT, report.model_dump_json().encode())

    async def _take(self, data: bytes) -> None:
        if any(not future.done() for future in self._waiting.values()):
            self._complete(Report.model_validate_json(data))

    def _complete(self, report: Report) -> None:
        future = self._waiting.get(report.order or "")
        if future is not None and not future.done():
            future.set_result(report)
