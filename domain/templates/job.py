"""The job: one attempt at a long operation, with phase and progress (reference/cubesandbox.md §1.5, §2.2).

What its states mean stands in ``job_states.py``, what can have happened to it in ``job_events.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate
from domain.kernel.errors import Refused
from domain.nodes.orders import Failure
from domain.templates import job_events as events
from domain.templates.job_states import LIFECYCLE, JobState
from domain.templates.progress import (
    STARTS_IN,
    Operation,
    Phase,
    PullProgress,
    first_phase,
    last_phase,
    progress_of,
    rank,
    worth_telling,
)
from domain.templates.redo import ReplicaView, redo_targets, resume_phase

__all__ = ["Job", "JobState", "Operation", "Phase", "PullProgress", "next_attempt"]

LEASE: Final = timedelta(minutes=15)
"""How long a job may go without a sign of life (reference/cubesandbox.md §12 "Timers")."""


CANCELLABLE: Final = frozenset({Operation.CREATE, Operation.REDO, Operation.COMMIT, Operation.CONVERGE})
"""What can be cut off: those that make templates. What is done to a running sandbox has a deadline of seconds instead."""


def next_attempt(latest: int | None) -> int:
    """The number of a resource's next job: 1 for its first, else one more than the latest and at least 2 (§2.2)."""
    return 1 if latest is None else max(latest + 1, 2)


class Job(Aggregate):
    TOPIC = "job"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: JobState
    operation: Operation
    resource_type: str
    resource_id: str
    request: dict[str, Any]
    attempt: int
    retry_of: str | None
    targets: tuple[str, ...]
    resume_phase: Phase | None
    sandbox_id: str | None
    phase: Phase
    progress: int
    pulled: PullProgress
    facts: dict[str, Any]
    holder: str | None
    lease_until: datetime
    result: dict[str, Any]
    failure: Failure | None

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        operation: Operation | str,
        resource_type: str,
        resource_id: str,
        request: Mapping[str, Any] | None = None,
        attempt: int = 1,
        retry_of: str | None = None,
        targets: tuple[str, ...] = (),
        resume_phase: Phase | str | None = None,
        sandbox_id: str | None = None,
    ) -> Self:
        """A new attempt. ``request``: what was asked, without secrets. ``resume_phase``: where a redo takes up the work."""
        kind = Operation(operation)
        resume = None if resume_phase is None else Phase(resume_phase)
        return cls.begin(
            events.JobCreated,
            id,
            at,
            operation=kind,
            resource_type=resource_type,
            resource_id=resource_id,
            request=dict(request or {}),
            attempt=attempt,
            retry_of=retry_of,
            targets=targets,
            resume_phase=resume,
            sandbox_id=sandbox_id,
            phase=resume or first_phase(kind),
            lease_until=at + LEASE,
        )

    @classmethod
    def redo(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        template_id: str,
        last: Job,
        mode: str,
        scope: Sequence[str],
        replicas: Sequence[ReplicaView],
        healthy: Collection[str],
    ) -> Self:
        """The next attempt at a template after its job ``last``: on which nodes and from where on, by the rules of ``redo.py``.

        Raises what they raise.
        """
        targets = redo_targets(mode, scope, replicas, healthy)
        resume = resume_phase(last.phase, last.state, replicas, last.operation)
        attempt = next_attempt(last.attempt)
        return cls.create(id, at, Operation.REDO, "template", template_id, {"mode": mode}, attempt, last.id, targets, resume)

    @property
    def status(self) -> str:
        """The contract's word."""
        return self.state.value

    @property
    def active(self) -> bool:
        """Is it still to end?"""
        return self.state in {JobState.PENDING, JobState.RUNNING}

    def raise_failure(self, details: Mapping[str, Any]) -> None:
        """Raise why it failed, if it did; ``details`` are added."""
        if self.failure is not None:
            raise self.failure.refusal(details)

    def start(self, at: datetime, holder: str, lease_s: float = LEASE.total_seconds()) -> None:
        """Begin to work on it. Who holds it already goes on; nobody else takes a running job."""
        if LIFECYCLE.admits("start", self.state):
            until = at + timedelta(seconds=lease_s)
            phase = STARTS_IN.get(self.operation)
            progress = max(self.progress, progress_of(self.operation, phase or self.phase))
            self.record(events.JobStarted, at, holder=holder, lease_until=until, progress=progress, phase=phase)

    def advance(self, at: datetime, phase: Phase | str, progress: int | None = None) -> None:
        """It is in ``phase`` now; ``progress`` if something finer than the phase's own number is known. Steps back are no news."""
        new = Phase(phase)
        if not LIFECYCLE.admits("advance", self.state) or rank(self.operation, new) < rank(self.operation, self.phase):
            return
        reached = max(self.progress, min(99, progress_of(self.operation, new) if progress is None else progress))
        if (new, reached) != (self.phase, self.progress):
            self.record(events.JobAdvanced, at, phase=new, progress=reached)

    def pull(self, at: datetime, pull: PullProgress) -> None:
        """How far the image has come; news every 5 points and at its end."""
        if LIFECYCLE.admits("pull", self.state) and worth_telling(self.pulled, pull):
            self.record(events.JobPulled, at, pull=pull)

    def set_targets(self, at: datetime, nodes: tuple[str, ...]) -> None:
        targets = tuple(sorted(set(nodes)))
        if targets != self.targets and LIFECYCLE.admits("set_targets", self.state):
            self.record(events.JobTargetsSet, at, targets=targets)

    def note(self, at: datetime, **facts: Any) -> None:
        """Remember what later phases need, JSON values by name."""
        news = {name: value for name, value in facts.items() if name not in self.facts or self.facts[name] != value}
        if news and LIFECYCLE.admits("note", self.state):
            self.record(events.JobNoted, at, facts=news)

    def renew(self, at: datetime, until: datetime) -> None:
        """It moves; the lease only ever grows. Signs of life are frequent and events for ever: news when a third of it is used up."""
        gained = until - self.lease_until
        if LIFECYCLE.admits("renew", self.state) and gained > timedelta() and gained >= (until - at) / 3:
            self.record(events.JobLeaseRenewed, at, until=until)

    def expire(self, at: datetime) -> None:
        """End it if its lease is over."""
        if at >= self.lease_until and LIFECYCLE.admits("expire", self.state):
            failure = Failure(code="job.expired", message=f"expired: no sign of life until {self.lease_until.isoformat()}", retryable=True)
            self.record(events.JobFailed, at, phase=self.phase, failure=failure)

    def cancel(self, at: datetime) -> None:
        """Somebody does not want it any more. Raises ``job.not-cancellable``, or ``job.illegal-state`` when it is done."""
        if self.operation not in CANCELLABLE:
            raise Refused("job.not-cancellable", f"a {self.operation} goes on to its end", details={"operation": self.operation.value})
        if LIFECYCLE.admits("cancel", self.state):
            self.record(events.JobFailed, at, phase=self.phase, failure=Failure(code="job.cancelled", message="it was cancelled"))

    def succeed(self, at: datetime, result: Mapping[str, Any] | None = None) -> None:
        if LIFECYCLE.admits("succeed", self.state):
            self.record(events.JobSucceeded, at, phase=last_phase(self.operation), result=dict(result or {}))

    def fail(self, at: datetime, phase: Phase | str | None, failure: Failure) -> None:
        """End it. ``phase`` None: in the phase it was in."""
        if LIFECYCLE.admits("fail", self.state):
            self.record(events.JobFailed, at, phase=self.phase if phase is None else Phase(phase), failure=failure)
