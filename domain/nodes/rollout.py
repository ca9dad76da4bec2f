"""The rollout: nodes that are to run other versions, a few at a time, without a template ever being without a ready replica.

RUNNING    nodes are taken up one after the other, as far as that is safe (handlers/processes/rollouts.py).
COMPLETED  every node is done.
CANCELLED  somebody stopped it: the nodes that it was at are opened again, the others were never touched.
FAILED     a replica could not be made again: nothing more is taken up, and the nodes that it was at stay drained for whoever looks.

A node's steps: WAITING, DRAINING (no new sandboxes, and those it has go), UPGRADING (it is empty: whoever upgrades machines does so now),
MENDING (it runs the versions; what they made stale is made again), DONE, SKIPPED (it was evicted meanwhile).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.lifecycle import Lifecycle
from domain.kernel.text import ErrorText, Why, clip
from domain.nodes.orders import Versions

SHOWN: Final = 20
"""Templates that an event names as the reason why nothing is taken up."""


class RolloutState(StrEnum):
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class NodeStep(StrEnum):
    WAITING = "WAITING"
    DRAINING = "DRAINING"
    UPGRADING = "UPGRADING"
    MENDING = "MENDING"
    DONE = "DONE"
    SKIPPED = "SKIPPED"


AT_WORK: Final = frozenset({NodeStep.DRAINING, NodeStep.UPGRADING, NodeStep.MENDING})
OVER: Final = frozenset({NodeStep.DONE, NodeStep.SKIPPED})

LIFECYCLE: Final = Lifecycle(
    "rollout",
    RolloutState,
    """
              RUNNING    COMPLETED  CANCELLED  FAILED
    move      RUNNING    =          =          =
    hold      RUNNING    =          =          =
    complete  COMPLETED  =          =          =
    fail      FAILED     =          =          =
    cancel    CANCELLED  !          =          CANCELLED
    """,
)


class RolloutBegun(CreatedEvent):
    """``versions``: what nodes have to say that they run; an empty one does not matter."""

    TOPIC = "rollout.begun"
    nodes: tuple[str, ...]
    versions: Versions
    at_once: int = 1
    stop_after_s: float | None = None

    def apply(self, rollout: Rollout) -> None:
        rollout.state = RolloutState.RUNNING
        rollout.nodes = dict.fromkeys(self.nodes, NodeStep.WAITING)
        rollout.versions = self.versions
        rollout.at_once = self.at_once
        rollout.stop_after_s = self.stop_after_s
        rollout.held_by = ()
        rollout.error = None


class RolloutNodeMoved(Event):
    """A node is at another step. ``UPGRADING`` says that it is empty: now is the time to upgrade the machine."""

    TOPIC = "rollout.node-moved"
    node_id: str
    step: NodeStep

    def apply(self, rollout: Rollout) -> None:
        rollout.nodes[self.node_id] = self.step


class RolloutHeld(Event):
    """Nothing can be taken up without leaving these templates (the first 20) without a ready replica; none: it goes on."""

    TOPIC = "rollout.held"
    templates: tuple[str, ...] = ()

    def apply(self, rollout: Rollout) -> None:
        rollout.held_by = self.templates


class RolloutCompleted(Event):
    TOPIC = "rollout.completed"

    def apply(self, rollout: Rollout) -> None:
        rollout.state = RolloutState.COMPLETED
        rollout.held_by = ()


class RolloutCancelled(Event):
    TOPIC = "rollout.cancelled"

    def apply(self, rollout: Rollout) -> None:
        rollout.state = RolloutState.CANCELLED
        rollout.held_by = ()


class RolloutFailed(Event):
    TOPIC = "rollout.failed"
    node_id: str
    template_id: str
    error: ErrorText | None = None

    def apply(self, rollout: Rollout) -> None:
        rollout.state = RolloutState.FAILED
        rollout.held_by = ()
        rollout.error = self.error


class Rollout(Aggregate):
    TOPIC = "rollout"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: RolloutState
    nodes: dict[str, NodeStep]
    versions: Versions
    at_once: int
    """How many nodes are taken up at one time."""
    stop_after_s: float | None
    """What a node's drain gives its sandboxes; None: they end by themselves."""
    held_by: tuple[str, ...]
    error: str | None

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        nodes: tuple[str, ...],
        versions: Versions,
        at_once: int = 1,
        stop_after_s: float | None = None,
    ) -> Self:
        return cls.begin(RolloutBegun, id, at, nodes=nodes, versions=versions, at_once=at_once, stop_after_s=stop_after_s)

    def at_step(self, *steps: NodeStep) -> list[str]:
        """The nodes at one of these steps, in the order of the rollout."""
        return [node for node, step in self.nodes.items() if step in steps]

    def fits(self, versions: Versions) -> bool:
        """Does a node that runs these run what the rollout wants?"""
        wanted = self.versions.model_dump()
        return all(getattr(versions, name) == version for name, version in wanted.items() if version)

    def move(self, at: datetime, node_id: str, step: NodeStep) -> None:
        """A node of it is at ``step`` now; steps only go forwards."""
        known = self.nodes.get(node_id)
        if known is None or known in OVER or list(NodeStep).index(step) <= list(NodeStep).index(known):
            return
        if LIFECYCLE.admits("move", self.state):
            self.record(RolloutNodeMoved, at, node_id=node_id, step=step)

    def hold(self, at: datetime, templates: tuple[str, ...] = ()) -> None:
        """Nothing is taken up for the sake of these templates; for none: something is. Only a change is news."""
        shown = tuple(sorted(templates)[:SHOWN])
        if shown != self.held_by and LIFECYCLE.admits("hold", self.state):
            self.record(RolloutHeld, at, templates=shown)

    def complete(self, at: datetime) -> None:
        """It is over when every node is."""
        if set(self.nodes.values()) <= OVER and LIFECYCLE.admits("complete", self.state):
            self.record(RolloutCompleted, at)

    def fail(self, at: datetime, node_id: str, template_id: str, error: Why = None) -> None:
        """A template's replica could not be made again on that node."""
        if LIFECYCLE.admits("fail", self.state):
            self.record(RolloutFailed, at, node_id=node_id, template_id=template_id, error=clip(error))

    def cancel(self, at: datetime) -> None:
        """Take up nothing more, and open again what it was at."""
        if LIFECYCLE.admits("cancel", self.state):
            self.record(RolloutCancelled, at)
