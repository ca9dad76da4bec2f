"""Sagas that go wrong on purpose, at any step: before its effect, with its reply lost, run twice, and with the agent's death.

In the spirit of the saga tests of Oxide's Omicron: the actions are the real ones, and what goes wrong goes wrong around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from agents.drivers.driver import RuntimeFault
from agents.node import LocalNode
from domain.kernel.saga import Action, Definition, NoUndo


class Died(BaseException):
    """The agent's process has ended here; no ``except Exception`` knows of it."""


@dataclass
class Sabotage:
    """What goes wrong in a saga that is wrapped in this. May be changed at any time.

    ``fails``: ``<action>:before`` its effect, or ``<action>:lost`` with its reply. ``times``: how often each action and each undo runs.
    ``dies``: the point (``agents/crashpoints.py``) at which the process that ``may_die`` ends, once.
    """

    fails: str = ""
    times: int = 1
    dies: str = ""
    ran: list[str] = field(default_factory=list)
    """Actions that had their effect, and undos, in their order."""

    def of(self, saga: Definition[Any]) -> Definition[Any]:
        """The saga, wrapped."""
        return replace(saga, actions=tuple(map(self._wrapped, saga.actions)))

    def _wrapped(self, action: Action[Any, Any, Any]) -> Action[Any, Any, Any]:
        undo = action.undo

        async def do(context: Any, taken: Any) -> Any:
            self._fail(f"{action.name}:before")
            given = [await action.do(context, taken) for _ in range(self.times)]
            self.ran.append(action.name)
            self._fail(f"{action.name}:lost")
            return given[-1]

        async def undone(context: Any, taken: Any) -> None:
            assert callable(undo)
            for _ in range(self.times):
                await undo(context, taken)
            self.ran.append(f"undo-{action.name}")

        return replace(action, do=do, undo=undo if isinstance(undo, NoUndo) else undone)

    def _fail(self, point: str) -> None:
        if point == self.fails:
            raise RuntimeFault("test.fault", point)

    def may_die(self, node: LocalNode) -> None:
        """Let the process that ``node`` is die where ``dies`` says. A dead process writes nothing."""

        def here(point: str) -> None:
            if point == self.dies:
                self.dies = ""
                node.journal.write = lambda *_: None  # type: ignore[method-assign]
                raise Died(point)

        node.crash.here = here  # type: ignore[method-assign]


@contextmanager
def said(moment: str) -> Iterator[None]:
    """What goes wrong in the block names the moment."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"at {moment}")
        raise


def failures(saga: Definition[Any]) -> list[str]:
    """Every way in which an action of it may fail."""
    return [f"{step}:{how}" for step in saga.steps for how in ("before", "lost")]


def deaths(saga: Definition[Any]) -> list[str]:
    """Every point at which the agent may die on its way forward."""
    return [f"{step}:{when}" for step in saga.steps for when in ("before", "after")]


def deaths_undoing(saga: Definition[Any]) -> list[str]:
    """Every point at which it may die while it undoes what has an undo."""
    undos = [action.name for action in reversed(saga.actions) if not isinstance(action.undo, NoUndo)]
    return [f"undo-{step}:{when}" for step in undos for when in ("before", "after")]
