"""The replica: a template made ready on one node. An aggregate of its own, so that a thousand nodes can report at once.

PENDING       it shall be made.
DISTRIBUTING  the node fetches the artifact.
DISTRIBUTED   the node has the verified bytes.
SNAPSHOTTING  the node makes the template startable and proves it by a boot.
READY         sandboxes can start here, unless its versions are stale (``compat.py``).
FAILED        it did not work, or was lost; ``last_error_phase`` says where. Only a redo leads on.
CLEANING      the node is to remove it.
REMOVED       nothing is left on the node; a redo may make it again.

Reports carry the job they belong to; those of another job are no news. A redo takes the replica out of scheduling at once, before anything
on the node is touched, and a failed one keeps the versions it was bound to (reference/cubesandbox.md §4.1, appendix B).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.lifecycle import Lifecycle
from domain.kernel.text import ErrorText, Why, clip
from domain.nodes.orders import Versions
from domain.templates.compat import Compat, Policy, evaluate, known


class ReplicaState(StrEnum):
    PENDING = "PENDING"
    DISTRIBUTING = "DISTRIBUTING"
    DISTRIBUTED = "DISTRIBUTED"
    SNAPSHOTTING = "SNAPSHOTTING"
    READY = "READY"
    FAILED = "FAILED"
    CLEANING = "CLEANING"
    REMOVED = "REMOVED"


LIFECYCLE: Final = Lifecycle(
    "replica",
    ReplicaState,
    """
                      PENDING       DISTRIBUTING  DISTRIBUTED   SNAPSHOTTING  READY         FAILED        CLEANING  REMOVED
    begin_distribute  DISTRIBUTING  DISTRIBUTING  =             =             =             DISTRIBUTING  !         !
    distributed       DISTRIBUTED   DISTRIBUTED   =             =             =             =             =         =
    begin_prepare     !             !             SNAPSHOTTING  =             =             !             !         !
    ready             READY         READY         READY         READY         =             =             =         =
    fail              FAILED        FAILED        FAILED        FAILED        =             =             =         =
    lost              =             =             FAILED        FAILED        FAILED        =             =         =
    redo:distribute   DISTRIBUTING  DISTRIBUTING  DISTRIBUTING  DISTRIBUTING  DISTRIBUTING  DISTRIBUTING  !         DISTRIBUTING
    redo:prepare      DISTRIBUTING  DISTRIBUTING  DISTRIBUTED   DISTRIBUTED   DISTRIBUTED   DISTRIBUTED   !         DISTRIBUTING
    adopt_baseline    =             =             =             =             READY         =             =         =
    begin_remove      CLEANING      CLEANING      CLEANING      CLEANING      CLEANING      CLEANING      =         =
    removed           =             =             =             =             =             =             REMOVED   =
    """,
)


class ReplicaCreated(CreatedEvent):
    TOPIC = "replica.created"
    template_id: str
    node_id: str
    artifact_id: str | None = None
    job_id: str

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.PENDING
        replica.template_id = self.template_id
        replica.node_id = self.node_id
        replica.artifact_id = self.artifact_id
        replica.job_id = self.job_id
        replica.attempt = 0
        replica.has_file = False
        replica.bound = Versions()
        replica.driver = None
        replica.last_error = None
        replica.last_error_phase = None
        replica.cleanup_required = False


class ReplicaDistributing(Event):
    TOPIC = "replica.distributing"
    attempt: int = 1

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.DISTRIBUTING
        replica.attempt = self.attempt


class ReplicaDistributed(Event):
    TOPIC = "replica.distributed"

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.DISTRIBUTED
        replica.has_file = True


class ReplicaPreparing(Event):
    TOPIC = "replica.preparing"

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.SNAPSHOTTING


class ReplicaReady(Event):
    """``versions``: what the node ran when it made this, to which the replica is bound from now on."""

    TOPIC = "replica.ready"
    versions: Versions = Versions()
    driver: str | None = None

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.READY
        replica.has_file = True
        replica.bound = self.versions
        replica.driver = self.driver
        replica.last_error = None
        replica.last_error_phase = None
        replica.cleanup_required = False


class ReplicaFailed(Event):
    """``phase``: where it went wrong. ``cleanup_required``: something of it may be left on the node. The bound versions stay."""

    TOPIC = "replica.failed"
    phase: str
    error: ErrorText | None = None
    cleanup_required: bool = False

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.FAILED
        replica.last_error = self.error
        replica.last_error_phase = self.phase
        replica.cleanup_required = self.cleanup_required


class ReplicaRedone(Event):
    """Another job makes it again, ``from_phase`` on."""

    TOPIC = "replica.redone"
    job_id: str
    artifact_id: str | None = None
    from_phase: ReplicaState

    def apply(self, replica: Replica) -> None:
        replica.state = self.from_phase
        replica.job_id = self.job_id
        replica.artifact_id = self.artifact_id
        replica.attempt = 0
        if self.from_phase is ReplicaState.DISTRIBUTING:
            replica.has_file = False


class ReplicaBaselineAdopted(Event):
    """Somebody vouches that it fits what the node runs now."""

    TOPIC = "replica.baseline-adopted"
    versions: Versions

    def apply(self, replica: Replica) -> None:
        replica.bound = self.versions


class ReplicaCleaning(Event):
    TOPIC = "replica.cleaning"
    job_id: str

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.CLEANING
        replica.job_id = self.job_id


class ReplicaRemoved(Event):
    TOPIC = "replica.removed"

    def apply(self, replica: Replica) -> None:
        replica.state = ReplicaState.REMOVED
        replica.has_file = False
        replica.cleanup_required = False


class Replica(Aggregate):
    TOPIC = "replica"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: ReplicaState
    template_id: str
    node_id: str
    artifact_id: str | None
    job_id: str
    attempt: int
    has_file: bool
    """The node has the artifact's bytes; not to be inferred from the status (reference/cubesandbox.md appendix B)."""
    bound: Versions
    driver: str | None
    last_error: str | None
    last_error_phase: str | None
    cleanup_required: bool

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        template_id: str,
        node_id: str,
        artifact_id: str | None,
        job_id: str,
    ) -> Self:
        return cls.begin(ReplicaCreated, id, at, template_id=template_id, node_id=node_id, artifact_id=artifact_id, job_id=job_id)

    @property
    def schedulable(self) -> bool:
        """Can sandboxes start from it, as far as the log knows? Whether its versions still fit is asked beside this."""
        return self.state is ReplicaState.READY

    @property
    def status(self) -> str:
        """READY, FAILED, or PENDING for everything on the way; REMOVED ones are not shown."""
        if self.state in {ReplicaState.READY, ReplicaState.FAILED}:
            return self.state.value
        return "REMOVED" if self.state is ReplicaState.REMOVED else "PENDING"

    @property
    def phase(self) -> str:
        """How far it is; the state's own name."""
        return self.state.value

    def begin_distribute(self, at: datetime, job_id: str, attempt: int = 1) -> None:
        """The node gets the order to fetch the artifact, for the ``attempt``-th time in this job."""
        admitted = LIFECYCLE.admits("begin_distribute", self.state)
        if admitted and job_id == self.job_id and attempt > self.attempt:
            self.record(ReplicaDistributing, at, attempt=attempt)

    def distributed(self, at: datetime, job_id: str) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("distributed", self.state):
            self.record(ReplicaDistributed, at)

    def begin_prepare(self, at: datetime, job_id: str) -> None:
        if LIFECYCLE.admits("begin_prepare", self.state) and job_id == self.job_id:
            self.record(ReplicaPreparing, at)

    def ready(self, at: datetime, job_id: str, versions: Versions, driver: str | None = None) -> None:
        """The node has proved that it can start from it. Also straight from PENDING: a commit makes it where the sandbox runs."""
        if job_id == self.job_id and LIFECYCLE.admits("ready", self.state):
            self.record(ReplicaReady, at, versions=versions, driver=driver)

    def fail(self, at: datetime, job_id: str, phase: str, error: Why, cleanup_required: bool = False) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("fail", self.state):
            self.record(ReplicaFailed, at, phase=phase, error=clip(error), cleanup_required=cleanup_required)

    def lost(self, at: datetime, error: Why = None) -> None:
        """The node says that it does not have it any more."""
        if LIFECYCLE.admits("lost", self.state):
            text = clip(error) or "the node does not have it any more"
            self.record(ReplicaFailed, at, phase=self.state.value, error=text, cleanup_required=True)

    def redo(self, at: datetime, job_id: str, artifact_id: str | None, from_phase: str) -> None:
        """Make it again for ``job_id``: from the fetching on, or from ``from_phase`` if that comes later and the node has these bytes."""
        if job_id == self.job_id:
            return
        late = from_phase in {"DISTRIBUTED", "CREATING_TEMPLATE", "SNAPSHOTTING", "REGISTERING"}
        row = "redo:prepare" if late and self.has_file and artifact_id == self.artifact_id else "redo:distribute"
        if LIFECYCLE.admits(row, self.state):
            self.record(ReplicaRedone, at, job_id=job_id, artifact_id=artifact_id, from_phase=LIFECYCLE.target(row, self.state))

    def adopt_baseline(self, at: datetime, versions: Versions, policy: Policy = Policy.STRICT) -> bool:
        """Bind an UNKNOWN replica to what its node runs now; says whether it did. STALE is never adopted (reference/cubesandbox.md §6).

        ``policy``: its template's. The node has to report guest image and agent all the same. A kernel that it does not report leaves
        the bound one alone.
        """
        if not LIFECYCLE.admits("adopt_baseline", self.state):
            return False
        if evaluate(versions, versions) is not Compat.OK or evaluate(self.bound, versions, policy) is not Compat.UNKNOWN:
            return False
        kernel = known(versions.kernel) or self.bound.kernel
        self.record(ReplicaBaselineAdopted, at, versions=versions.model_copy(update={"kernel": kernel}))
        return True

    def begin_remove(self, at: datetime, job_id: str) -> None:
        if LIFECYCLE.admits("begin_remove", self.state):
            self.record(ReplicaCleaning, at, job_id=job_id)

    def removed(self, at: datetime) -> None:
        if LIFECYCLE.admits("removed", self.state):
            self.record(ReplicaRemoved, at)
