"""What can have happened to a job. Names and fields are permanent; ``apply`` only writes down what the event says."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from domain.kernel.aggregate import CreatedEvent, Event
from domain.nodes.orders import Failure
from domain.templates.job_states import JobState
from domain.templates.progress import Operation, Phase, PullProgress

if TYPE_CHECKING:
    from domain.templates.job import Job


class JobCreated(CreatedEvent):
    TOPIC = "job.created"
    operation: Operation
    resource_type: str
    resource_id: str
    request: dict[str, Any] = {}
    attempt: int = 1
    retry_of: str | None = None
    targets: tuple[str, ...] = ()
    resume_phase: Phase | None = None
    sandbox_id: str | None = None
    phase: Phase
    lease_until: datetime

    def apply(self, job: Job) -> None:
        job.state = JobState.PENDING
        job.operation = self.operation
        job.resource_type = self.resource_type
        job.resource_id = self.resource_id
        job.request = self.request
        job.attempt = self.attempt
        job.retry_of = self.retry_of
        job.targets = self.targets
        job.resume_phase = self.resume_phase
        job.sandbox_id = self.sandbox_id
        job.phase = self.phase
        job.progress = 0
        job.pulled = PullProgress()
        job.facts = {}
        job.holder = None
        job.lease_until = self.lease_until
        job.result = {}
        job.failure = None


class JobStarted(Event):
    """``phase``: the one in which its work begins, if that is another than the one it waited in."""

    TOPIC = "job.started"
    holder: str
    lease_until: datetime
    progress: int = 0
    phase: Phase | None = None

    def apply(self, job: Job) -> None:
        job.state = JobState.RUNNING
        job.phase = self.phase or job.phase
        job.holder = self.holder
        job.lease_until = self.lease_until
        job.progress = self.progress


class JobAdvanced(Event):
    TOPIC = "job.advanced"
    phase: Phase
    progress: int

    def apply(self, job: Job) -> None:
        job.phase = self.phase
        job.progress = self.progress


class JobPulled(Event):
    TOPIC = "job.pulled"
    pull: PullProgress

    def apply(self, job: Job) -> None:
        job.pulled = self.pull


class JobTargetsSet(Event):
    TOPIC = "job.targets-set"
    targets: tuple[str, ...]

    def apply(self, job: Job) -> None:
        job.targets = self.targets


class JobNoted(Event):
    """Something that later phases need, learnt on the way: a digest, an artifact id, ..."""

    TOPIC = "job.noted"
    facts: dict[str, Any]

    def apply(self, job: Job) -> None:
        job.facts = {**job.facts, **self.facts}


class JobLeaseRenewed(Event):
    TOPIC = "job.lease-renewed"
    until: datetime

    def apply(self, job: Job) -> None:
        job.lease_until = self.until


class JobSucceeded(Event):
    TOPIC = "job.succeeded"
    phase: Phase
    result: dict[str, Any] = {}

    def apply(self, job: Job) -> None:
        job.state = JobState.READY
        job.phase = self.phase
        job.progress = 100
        job.result = self.result


class JobFailed(Event):
    """The end, at ``phase``. The progress is 100 as for every ended job: there is nothing more to come (reference/cubesandbox.md §3.3)."""

    TOPIC = "job.failed"
    phase: Phase
    failure: Failure

    def apply(self, job: Job) -> None:
        job.state = JobState.FAILED
        job.phase = self.phase
        job.progress = 100
        job.failure = self.failure
