"""One order being carried out: what every verb's function gets."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from agents.account import OrderAccount
from agents.drivers.driver import CanPause, Driver, RuntimeFault
from agents.failures import fail
from agents.fence import Fence
from agents.node import LocalNode
from agents.records import Trail
from agents.steps import Execution, run
from domain.kernel.aggregate import Record
from domain.kernel.saga import Definition
from domain.nodes.orders import Order

T = TypeVar("T")
C = TypeVar("C")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Task:
    """``trail`` is what the journal has of the order, also from before a crash; ``account`` writes it on."""

    node: LocalNode
    order: Order
    trail: Trail
    account: OrderAccount

    @property
    def seconds_left(self) -> float | None:
        """Until the order's deadline; None without one."""
        deadline = self.order.deadline
        return None if deadline is None else max(0.0, (deadline - self.node.clock()).total_seconds())

    async def saga(self, saga: Definition[C], context: C, given: Record, fence: Fence, result: type[R]) -> R:
        """Take the order's saga to its end, and say what came of it. Raises ``UnwoundError``, ``IncompatibleError``."""
        clock, crash = self.node.clock, self.node.crash.here
        execution = Execution(saga, context, given, self.account, fence, clock, self.order.deadline, crash)
        await run(execution)
        return execution.gather(result)

    async def guarded(self, sandbox_id: str, action: Coroutine[Any, Any, T]) -> T:
        """The result of ``action``, unless the deadline passes or a destroy of the sandbox arrives first."""
        with self.node.fenced(sandbox_id) as fence:
            return await fence.guard(action, self.seconds_left)

    def progress(self, body: Record) -> None:
        """Tell how far it is."""
        self.node.crash.here(f"{getattr(body, 'phase', '').lower()}:told")
        self.node.reporter.progress(self.order, body.model_dump(mode="json"))


def can_pause(driver: Driver) -> CanPause:
    """The driver as one that can. Raises ``driver.unsupported``: refused, never pretended (design.md §7)."""
    if isinstance(driver, CanPause) and "pause" in driver.flags:
        return driver
    raise fail("driver.unsupported", f"driver {driver.name} cannot pause on this node", driver=driver.name, needs="pause")


async def attempt(work: Awaitable[object]) -> RuntimeFault | None:
    """Do something whose failure does not matter beyond being known."""
    try:
        await work
    except RuntimeFault as fault:
        return fault
    return None
