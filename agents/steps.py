"""A small saga, run on this node: steps forward, and when one fails, undos backward, by the journal's account of both.

- A step's ``do`` and ``undo`` may each run twice. ``undo`` also runs for the step that failed, and must bear that nothing was done.
- Undos run in reverse order and stop at the first that fails: earlier steps may own what the failed one still uses.
- After a crash, steps that are done are skipped and the interrupted one runs again; what was being undone is undone further.
- The deadline is the order's, an instant, so that a resumed saga does not get a new one (reference/miren-sandbox.md §2.4b.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Protocol, TypeVar

from agents.failures import SUPERSEDED, failure_of
from agents.fence import Fence
from domain.nodes.orders import Failure

C = TypeVar("C")

Output = dict[str, Any]
"""What a step leaves for later steps and for its undo: JSON-ready."""

UNDO_S: Final = 60.0
"""How long one undo may take: it runs in a time of its own, however little the order had left."""


@dataclass(frozen=True, slots=True)
class Step(Generic[C]):
    """One step, with its compensation beside it."""

    name: str
    do: Callable[[C], Awaitable[Output]]
    undo: Callable[[C], Awaitable[None]]


class Account(Protocol):
    """Where a saga's progress is kept; each call is on record when it returns."""

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Of the steps that are done."""
        ...

    @property
    def touched(self) -> Sequence[str]:
        """Steps that were started and are not undone."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Set when the saga is being undone."""
        ...

    def began(self, step: str) -> datetime | None:
        """When it was started first, also by an agent that died since."""
        ...

    def started(self, step: str) -> None: ...
    def done(self, step: str, output: Output) -> None: ...
    def failed(self, step: str, failure: Failure, *, told: bool) -> None:
        """From here on it is undone. ``told``: the step itself failed, rather than being given up."""
        ...

    def undone(self, step: str) -> None: ...
    def undo_failed(self, step: str, failure: Failure) -> None: ...


class UnwoundError(Exception):
    """The saga failed. ``left``: steps that could not be undone, in their order; empty when nothing is left."""

    def __init__(self, failure: Failure, left: tuple[str, ...] = (), undo_failure: Failure | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.left = left
        self.undo_failure = undo_failure


async def run(
    steps: Sequence[Step[C]],
    context: C,
    account: Account,
    *,
    fence: Fence,
    deadline: datetime | None = None,
    now: Callable[[], datetime],
    crash: Callable[[str], None] = lambda _point: None,
) -> None:
    """Take the saga to its end from wherever the account says it is. Raises ``UnwoundError`` when that end is that nothing was done."""
    for step in steps:
        if account.failure is not None:
            break
        if step.name not in account.outputs:
            await _forward(step, context, account, fence, deadline, now, crash)
    if account.failure is not None:
        await unwind(steps, context, account, crash)


async def _forward(
    step: Step[C],
    context: C,
    account: Account,
    fence: Fence,
    deadline: datetime | None,
    now: Callable[[], datetime],
    crash: Callable[[str], None],
) -> None:
    if fence.closed:
        account.failed(step.name, SUPERSEDED, told=False)
        return
    seconds = None if deadline is None else max(0.0, (deadline - now()).total_seconds())
    account.started(step.name)
    crash(f"{step.name}:before")
    try:
        output = await fence.guard(_awaited(step.do(context)), seconds)
        crash(f"{step.name}:after")
        account.done(step.name, output)
    except Exception as error:  # noqa: BLE001 - whatever it is, what was done so far has to be undone
        account.failed(step.name, failure_of(error), told=True)


async def unwind(steps: Sequence[Step[C]], context: C, account: Account, crash: Callable[[str], None] = lambda _point: None) -> None:
    """Undo what was touched, last first, and raise ``UnwoundError``."""
    failure = account.failure or SUPERSEDED
    for step in reversed(steps):
        if step.name not in account.touched:
            continue
        crash(f"undo-{step.name}:before")
        try:
            async with asyncio.timeout(UNDO_S):
                await _awaited(step.undo(context))
        except Exception as error:
            why = failure_of(error)
            account.undo_failed(step.name, why)
            left = tuple(name.name for name in steps if name.name in account.touched)
            raise UnwoundError(failure, left, why) from error
        crash(f"undo-{step.name}:after")
        account.undone(step.name)
    raise UnwoundError(failure)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
