"""The provisioning: the saga that brings one sandbox up, or leaves nothing behind (reference/miren-sandbox.md §2.3, §2.6).

The node's agent runs the steps and journals them; this aggregate (same id as the sandbox) is what the rest of the world knows of it.

RUNNING     the node works on it, or will when it gets the order.
COMPLETED   every step is done. Follows from the sandbox's start, whose one commit is the saga's last word.
UNDOING     it failed and something could not be undone; the undo is tried again, by the node itself and when it is told to.
FAILED      it failed and everything is undone.
BLOCKED     the undo failed at least 3 times over at least 1 hour; only a person, or another try, goes on. Or the node has another
            program by now, which knows nothing of the saga as it was begun: that does nothing and undoes nothing.
ABANDONED   a person gave a blocked undo up, or the node was evicted; ``uncompensated`` says what may be left on the node.
SUPERSEDED  the sandbox was stopped first; the node undoes or tears down, nobody waits for a start.

Reports carry the attempt they belong to; those of an older attempt are no news. Which steps there are is the agent's business.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.lifecycle import Lifecycle
from domain.nodes.orders import Failure, StepReport, StepState

UNDO_PAUSE: Final = timedelta(minutes=10)
"""After so long without news of an undo the node is told to try again."""
UNDO_ATTEMPTS: Final = 3
UNDO_PATIENCE: Final = timedelta(hours=1)
"""An undo is blocked after this many failures and this long, both (reference/miren-sandbox.md §2.6)."""


class ProvisioningState(StrEnum):
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    UNDOING = "UNDOING"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"
    ABANDONED = "ABANDONED"
    SUPERSEDED = "SUPERSEDED"


LIFECYCLE: Final = Lifecycle(
    "sandbox",
    ProvisioningState,
    """
                          RUNNING     COMPLETED              UNDOING  FAILED                 BLOCKED    ABANDONED  SUPERSEDED
    record_steps          RUNNING     =                      UNDOING  =                      BLOCKED    =          SUPERSEDED
    complete              COMPLETED   =                      =        =                      COMPLETED  =          =
    fail:undone           FAILED      =                      FAILED   =                      FAILED     =          =
    fail:left             UNDOING     =                      =        =                      =          =          =
    undo_failed:again     =           =                      UNDOING  =                      =          =          =
    undo_failed:enough    =           =                      BLOCKED  =                      =          =          =
    undone                =           =                      FAILED   =                      FAILED     =          =
    block                 BLOCKED     =                      BLOCKED  =                      =          =          =
    retry                 RUNNING     =                      UNDOING  =                      UNDOING    =          =
    lose_node             =           =                      ABANDONED =                     ABANDONED  =          =
    supersede             SUPERSEDED  =                      =        =                      =          =          =
    abandon  !sandbox.undo-blocked !sandbox.undo-blocked !sandbox.undo-blocked !sandbox.undo-blocked ABANDONED = !sandbox.undo-blocked
    """,
)


class ProvisioningBegun(CreatedEvent):
    TOPIC = "provisioning.begun"
    node_id: str
    attempt: int = 1
    steps: tuple[str, ...] = ()

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.state = ProvisioningState.RUNNING
        provisioning.node_id = self.node_id
        provisioning.attempt = self.attempt
        provisioning.plan = self.steps
        provisioning.known = 0
        provisioning.steps = {}
        provisioning.failed_step = ""
        provisioning.failure = None
        provisioning.uncompensated = ()
        provisioning.undo_attempts = 0
        provisioning.undo_failing_since = None


class ProvisioningStepped(Event):
    """What the node did, in its order. ``first`` numbers the first of these steps within the attempt."""

    TOPIC = "provisioning.stepped"
    attempt: int
    first: int = 0
    steps: tuple[StepReport, ...]

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.known = self.first + len(self.steps)
        provisioning.steps = {**provisioning.steps, **{step.step: step.state for step in self.steps}}


class ProvisioningCompleted(Event):
    TOPIC = "provisioning.completed"
    attempt: int

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.state = ProvisioningState.COMPLETED


class ProvisioningFailed(Event):
    """It failed. ``uncompensated`` names what could not be undone yet; empty: nothing is left."""

    TOPIC = "provisioning.failed"
    attempt: int
    failed_step: str = ""
    failure: Failure
    uncompensated: tuple[str, ...] = ()

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.failed_step = provisioning.failed_step or self.failed_step
        provisioning.failure = provisioning.failure or self.failure
        provisioning.uncompensated = self.uncompensated
        if self.uncompensated:
            provisioning.state = ProvisioningState.UNDOING
            provisioning.undo_attempts = 1
            provisioning.undo_failing_since = self.timestamp
        else:
            provisioning.state = ProvisioningState.FAILED


class ProvisioningUndoFailed(Event):
    TOPIC = "provisioning.undo-failed"
    attempt: int
    failure: Failure
    uncompensated: tuple[str, ...]
    blocked: bool = False

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.uncompensated = self.uncompensated
        provisioning.undo_attempts += 1
        if self.blocked:
            provisioning.state = ProvisioningState.BLOCKED


class ProvisioningBlocked(Event):
    """The node has a program that cannot go on with it. ``uncompensated``: what had been begun (reference/miren-sandbox.md §2.7)."""

    TOPIC = "provisioning.blocked"
    attempt: int
    failure: Failure
    uncompensated: tuple[str, ...] = ()

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.state = ProvisioningState.BLOCKED
        provisioning.failure = provisioning.failure or self.failure
        provisioning.uncompensated = self.uncompensated


class ProvisioningRetried(Event):
    """The node is told once more, under a new attempt; its journal knows what is already there."""

    TOPIC = "provisioning.retried"
    attempt: int

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.attempt = self.attempt
        provisioning.known = 0
        if provisioning.state is ProvisioningState.BLOCKED:
            provisioning.state = ProvisioningState.UNDOING


class ProvisioningSuperseded(Event):
    TOPIC = "provisioning.superseded"

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.state = ProvisioningState.SUPERSEDED


class ProvisioningAbandoned(Event):
    TOPIC = "provisioning.abandoned"
    uncompensated: tuple[str, ...]

    def apply(self, provisioning: Provisioning) -> None:
        provisioning.state = ProvisioningState.ABANDONED
        provisioning.uncompensated = self.uncompensated


class Provisioning(Aggregate):
    TOPIC = "provisioning"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: ProvisioningState
    node_id: str
    attempt: int
    plan: tuple[str, ...]
    known: int
    """How many step reports of this attempt are recorded, from the first on, without a gap."""
    steps: dict[str, StepState]
    failed_step: str
    failure: Failure | None
    uncompensated: tuple[str, ...]
    undo_attempts: int
    undo_failing_since: datetime | None

    @classmethod
    def create(cls, id: str, at: datetime, node_id: str, attempt: int = 1, steps: tuple[str, ...] = ()) -> Self:  # noqa: A002
        return cls.begin(ProvisioningBegun, id, at, node_id=node_id, attempt=attempt, steps=steps)

    def record_steps(self, at: datetime, attempt: int, first: int, steps: tuple[StepReport, ...]) -> None:
        """Append the part of ``steps`` that is not known yet. What lies beyond a gap waits for the report that fills it."""
        news = steps[max(0, self.known - first) :]
        if attempt == self.attempt and news and first <= self.known and LIFECYCLE.admits("record_steps", self.state):
            self.record(ProvisioningStepped, at, attempt=attempt, first=self.known, steps=news)

    def complete(self, at: datetime, attempt: int) -> None:
        if attempt >= self.attempt and LIFECYCLE.admits("complete", self.state):
            self.record(ProvisioningCompleted, at, attempt=attempt)

    @property
    def unwinding(self) -> bool:
        """Is something left that ought to be undone?"""
        return self.state in {ProvisioningState.UNDOING, ProvisioningState.BLOCKED}

    def retry_due(self, now: datetime) -> bool:
        """Should the node be told to undo what is left? Not once that is blocked: then a person decides, or a try of the node's own."""
        return self.state is ProvisioningState.UNDOING and now - self.modified_on >= UNDO_PAUSE

    def fail(self, at: datetime, attempt: int, failed_step: str, failure: Failure, uncompensated: tuple[str, ...] = ()) -> None:
        """It failed, and everything but ``uncompensated`` is undone."""
        row = "fail:left" if uncompensated else "fail:undone"
        if attempt >= self.attempt and LIFECYCLE.admits(row, self.state):
            self.record(ProvisioningFailed, at, attempt=attempt, failed_step=failed_step, failure=failure, uncompensated=uncompensated)

    def undo_failed(self, at: datetime, attempt: int, failure: Failure, uncompensated: tuple[str, ...] = ()) -> None:
        """One more try at undoing failed."""
        since = self.undo_failing_since
        enough = self.undo_attempts + 1 >= UNDO_ATTEMPTS and since is not None and at - since >= UNDO_PATIENCE
        row = "undo_failed:enough" if enough else "undo_failed:again"
        if attempt >= self.attempt and LIFECYCLE.admits(row, self.state):
            left = uncompensated or self.uncompensated
            self.record(ProvisioningUndoFailed, at, attempt=attempt, failure=failure, uncompensated=left, blocked=enough)

    def block(self, at: datetime, attempt: int, failure: Failure, uncompensated: tuple[str, ...]) -> None:
        """The node cannot go on with it, in neither direction."""
        if attempt >= self.attempt and LIFECYCLE.admits("block", self.state):
            self.record(ProvisioningBlocked, at, attempt=attempt, failure=failure, uncompensated=uncompensated)

    def undone(self, at: datetime) -> None:
        """What had been left is undone now, by whichever attempt: a sandbox's id is never used again."""
        if self.failure is not None and LIFECYCLE.admits("undone", self.state):
            self.record(ProvisioningFailed, at, attempt=self.attempt, failed_step=self.failed_step, failure=self.failure)

    def lose_node(self, at: datetime) -> None:
        """Its node was evicted and undoes nothing any more."""
        if LIFECYCLE.admits("lose_node", self.state):
            self.record(ProvisioningAbandoned, at, uncompensated=self.uncompensated)

    def retry(self, at: datetime, attempt: int) -> None:
        """Tell the node again, under ``attempt``, which must be new. A blocked undo gets one more chance by this."""
        if attempt > self.attempt and LIFECYCLE.admits("retry", self.state):
            self.record(ProvisioningRetried, at, attempt=attempt)

    def supersede(self, at: datetime) -> None:
        """The sandbox was stopped while it came up."""
        if LIFECYCLE.admits("supersede", self.state):
            self.record(ProvisioningSuperseded, at)

    def abandon(self, at: datetime) -> tuple[str, ...]:
        """Give a blocked undo up; says what may be left behind. An undo that is not blocked is still being tried, and is not given up."""
        if LIFECYCLE.admits("abandon", self.state):
            self.record(ProvisioningAbandoned, at, uncompensated=self.uncompensated)
        return self.uncompensated
