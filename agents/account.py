"""An order's account of its steps: written into the journal at once, told to the control plane soon.

Steps that follow each other quickly are told together, with the end of the order if that is near; a step that takes long is told while it
runs. Steps are numbered within the order, so that what is told twice, or late, falls into its place (``Steps.first``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from agents.journal import Entry, Journal
from agents.records import Memory, Trail, saga_entry, step_entry, unwind_entry
from domain.kernel.saga import Output
from domain.nodes.orders import Failure, StepReport, Steps, StepState

QUIET_S: Final = 0.1
"""How long a step may take before it is told by itself."""

Tell = Callable[[Steps], Awaitable[None]]


class OrderAccount:
    """The ``Account`` of one order. ``tell`` is None for orders whose steps nobody is told."""

    def __init__(
        self, trail: Trail, journal: Journal[Memory], clock: Callable[[], datetime], tell: Tell | None = None, quiet_s: float = QUIET_S
    ) -> None:
        self._trail = trail
        self._journal = journal
        self._clock = clock
        self._tell = tell
        self._quiet_s = quiet_s
        self._told = 0
        self._telling: asyncio.Task[None] | None = None

    @property
    def saga(self) -> str:
        return self._trail.saga

    @property
    def outputs(self) -> Mapping[str, Output]:
        return self._trail.outputs

    @property
    def touched(self) -> Sequence[str]:
        return self._trail.touched

    @property
    def failure(self) -> Failure | None:
        return self._trail.failure

    @property
    def failed_step(self) -> str:
        return self._trail.failed_step

    def since(self, step: str) -> datetime:
        """When a step was first started, by whichever process."""
        return next((report.at for report in self._trail.steps if report.step == step), self._clock())

    def started(self, step: str, saga: str = "") -> None:
        first = (saga_entry(self._trail.order.id, saga),) if saga and not self._trail.saga else ()
        self._note(step, StepState.STARTED, *first)

    def done(self, step: str, output: Output) -> None:
        self._note(step, StepState.DONE, output=output)

    def failed(self, step: str, failure: Failure, *, told: bool) -> None:
        self._journal.write(unwind_entry(self._trail.order.id, step, failure))
        if told:
            self._note(step, StepState.FAILED, error=failure)

    def undone(self, step: str) -> None:
        self._note(step, StepState.UNDONE)

    def undo_failed(self, step: str, failure: Failure) -> None:
        self._note(step, StepState.UNDO_FAILED, error=failure)

    def _note(self, step: str, state: StepState, *first: Entry, **more: Any) -> None:
        report = StepReport(step=step, state=state, at=self._clock(), **more)
        self._journal.write(*first, step_entry(self._trail.order.id, report))
        if self._tell is not None and self._telling is None:
            self._telling = asyncio.create_task(self._tell_soon(self._tell))

    async def _tell_soon(self, tell: Tell) -> None:
        while self._told < len(self._trail.steps):
            await asyncio.sleep(self._quiet_s)
            await self._journal.sync()  # what was told is never taken back
            untold = self.rest()
            await tell(untold)
            self._told = untold.first + len(untold.steps)
        self._telling = None

    def rest(self) -> Steps:
        """The steps that nobody was told yet."""
        return Steps(first=self._told, steps=tuple(self._trail.steps[self._told :]))

    async def close(self) -> Steps:
        """Stop telling; what is left goes with the end of the order."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            self._telling = None
        return self.rest()
