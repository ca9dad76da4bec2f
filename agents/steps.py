"""Sagas, run on this node: actions forward, and when one fails, undos backward, by the journal's account of both.

- An action and its undo may each run twice. An undo also runs for the action that failed, and must bear that nothing was done.
- Undos run in reverse order and stop at the first that fails: earlier actions may own what the failed one still uses.
- After a crash, actions that are done are skipped and the interrupted one runs again; what was being undone is undone further.
- The deadline is the order's, an instant, so that a resumed saga does not get a new one (reference/miren-sandbox.md §2.4b.2).
- Before each action, and once more after the last, the fence is asked whether something stronger has come; then the saga ends as
  superseded, undone, and nobody is told that it succeeded (§2.4b.6).
- What was begun by a declaration that this program does not know is left alone: nothing is done and nothing undone (§2.7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Protocol, TypeVar

from agents.failures import SUPERSEDED, failure_of
from agents.fence import Fence
from domain.kernel.aggregate import Record
from domain.kernel.saga import Action, Definition, NoUndo, Output
from domain.nodes.orders import Failure

C = TypeVar("C")
R = TypeVar("R", bound=Record)

UNDO_S: Final = 60.0
"""How long one undo may take: it runs in a time of its own, however little the order had left."""


class Account(Protocol):
    """Where a saga's progress is kept; each call is on record when it returns."""

    @property
    def saga(self) -> str:
        """The label of the declaration that its first step began under; empty before."""
        ...

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Of the actions that are done."""
        ...

    @property
    def touched(self) -> Sequence[str]:
        """Actions that were started and are not undone."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Set when the saga is being undone."""
        ...

    def started(self, step: str, saga: str) -> None:
        """``saga``: the label, for the first step."""
        ...

    def done(self, step: str, output: Output) -> None: ...
    def failed(self, step: str, failure: Failure, *, told: bool) -> None:
        """From here on it is undone. ``told``: the step itself failed, rather than being given up."""
        ...

    def undone(self, step: str) -> None: ...
    def undo_failed(self, step: str, failure: Failure) -> None: ...


class UnwoundError(Exception):
    """The saga failed. ``left``: actions that could not be undone, in their order; empty when nothing is left."""

    def __init__(self, failure: Failure, left: tuple[str, ...] = (), undo_failure: Failure | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.left = left
        self.undo_failure = undo_failure


class IncompatibleError(Exception):
    """It was begun under a declaration that this program cannot go on with. Nothing was done about it."""


@dataclass(frozen=True, slots=True)
class Execution(Generic[C]):
    """One run of a saga: its declaration, what its actions work with, what it was given, how far it is, and what may end it."""

    saga: Definition[C]
    context: C
    given: Record
    account: Account
    fence: Fence
    now: Callable[[], datetime]
    deadline: datetime | None = None
    crash: Callable[[str], None] = lambda _point: None

    def gather(self, wanted: type[R]) -> R:
        """A record of what there is by now. Raises ``ValueError``."""
        return self.saga.gather(wanted, self.given, self.account.outputs)


async def run(e: Execution[C]) -> None:
    """Take the saga to its end from wherever the account says it is.

    Raises ``UnwoundError`` when that end is that nothing was done, ``IncompatibleError`` when it is no saga of ours.
    """
    _follow(e)
    for action in e.saga.actions:
        if e.account.failure is not None:
            break
        if action.name not in e.account.outputs:
            await _forward(e, action)
    if e.account.failure is None and e.fence.closed:
        e.account.failed(e.saga.steps[-1], SUPERSEDED, told=False)
    if e.account.failure is not None:
        await unwind(e)


def _follow(e: Execution[C]) -> None:
    """What an earlier program began without saying under what is of the first version."""
    account = e.account
    label = account.saga or (f"{e.saga.name}/1" if account.touched else e.saga.label)
    unknown = [step for step in account.touched if step not in e.saga.steps]
    if not e.saga.follows(label) or unknown:
        raise IncompatibleError(f"it is an unfinished {label}; this program has {e.saga.label}, which does not go on with it")


async def _forward(e: Execution[C], action: Action[C, Any, Any]) -> None:
    if e.fence.closed:
        e.account.failed(action.name, SUPERSEDED, told=False)
        return
    seconds = None if e.deadline is None else max(0.0, (e.deadline - e.now()).total_seconds())
    e.account.started(action.name, e.saga.label)
    e.crash(f"{action.name}:before")
    try:
        output = await e.fence.guard(_awaited(action.do(e.context, e.gather(action.takes))), seconds)
        e.crash(f"{action.name}:after")
        e.account.done(action.name, output.model_dump(mode="json"))
    except Exception as error:  # noqa: BLE001 - whatever it is, what was done so far has to be undone
        e.account.failed(action.name, failure_of(error), told=True)


async def unwind(e: Execution[C]) -> None:
    """Undo what was touched, last first, and raise ``UnwoundError``."""
    failure = e.account.failure or SUPERSEDED
    for action in reversed(e.saga.actions):
        if action.name not in e.account.touched:
            continue
        e.crash(f"undo-{action.name}:before")
        try:
            await _undo(e, action)
        except Exception as error:
            why = failure_of(error)
            e.account.undo_failed(action.name, why)
            left = tuple(name for name in e.saga.steps if name in e.account.touched)
            raise UnwoundError(failure, left, why) from error
        e.crash(f"undo-{action.name}:after")
        e.account.undone(action.name)
    raise UnwoundError(failure)


async def _undo(e: Execution[C], action: Action[C, Any, Any]) -> None:
    if action.undo is None or isinstance(action.undo, NoUndo):
        return
    async with asyncio.timeout(UNDO_S):
        await action.undo(e.context, e.gather(action.takes))


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
