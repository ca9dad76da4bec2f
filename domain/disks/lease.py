"""The lease: one sandbox's claim to one disk (id = sandbox + disk). The disk decides who gets it; both change in one commit.

PENDING   promised. It waits until the disk is there and mounted nowhere, at most until its deadline.
BOUND     the sandbox may mount the disk, under the lease's ``epoch``, and nobody else may.
RELEASED  it is over: the sandbox ends, or was made to. Its mount may last until the sandbox is down.
FAILED    it was never bound: the disk did not come, or not in time.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Literal, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.lifecycle import Lifecycle
from domain.nodes.orders import Failure

LEASE_TIMEOUT_S: Final = 300.0
"""How long a lease waits to be bound, unless the sandbox says otherwise (reference/miren-sandbox.md §5.1)."""

Release = Literal["sandbox-ended", "node-evicted"]


class LeaseState(StrEnum):
    PENDING = "PENDING"
    BOUND = "BOUND"
    RELEASED = "RELEASED"
    FAILED = "FAILED"


LIFECYCLE: Final = Lifecycle(
    "disk-lease",
    LeaseState,
    """
             PENDING   BOUND     RELEASED  FAILED
    bind     BOUND     =         =         =
    release  RELEASED  RELEASED  =         =
    fail     FAILED    =         =         =
    """,
)


def lease_id(sandbox_id: str, disk: str) -> str:
    """The id of a sandbox's lease of a disk: both, in one token."""
    return f"{sandbox_id}_{disk}"


class LeaseRequested(CreatedEvent):
    TOPIC = "disk-lease.requested"
    disk: str
    volume_id: str
    sandbox_id: str
    node_id: str
    mount_path: str
    read_only: bool = False
    deadline: datetime

    def apply(self, lease: DiskLease) -> None:
        lease.state = LeaseState.PENDING
        lease.disk = self.disk
        lease.volume_id = self.volume_id
        lease.sandbox_id = self.sandbox_id
        lease.node_id = self.node_id
        lease.mount_path = self.mount_path
        lease.read_only = self.read_only
        lease.deadline = self.deadline
        lease.epoch = 0
        lease.failure = None


class LeaseBound(Event):
    TOPIC = "disk-lease.bound"
    epoch: int

    def apply(self, lease: DiskLease) -> None:
        lease.state = LeaseState.BOUND
        lease.epoch = self.epoch


class LeaseReleased(Event):
    TOPIC = "disk-lease.released"
    reason: Release

    def apply(self, lease: DiskLease) -> None:
        lease.state = LeaseState.RELEASED


class LeaseFailed(Event):
    TOPIC = "disk-lease.failed"
    failure: Failure

    def apply(self, lease: DiskLease) -> None:
        lease.state = LeaseState.FAILED
        lease.failure = self.failure


class DiskLease(Aggregate):
    TOPIC = "disk-lease"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: LeaseState
    disk: str
    volume_id: str
    sandbox_id: str
    node_id: str
    mount_path: str
    read_only: bool
    deadline: datetime
    """Of being bound."""
    epoch: int
    failure: Failure | None

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        volume_id: str,
        node_id: str,
        mount_path: str,
        deadline: datetime,
        read_only: bool = False,
    ) -> Self:
        """A lease; its id (``lease_id``) says whose and of what."""
        sandbox_id, _, disk = id.partition("_")
        return cls.begin(
            LeaseRequested,
            id,
            at,
            disk=disk,
            volume_id=volume_id,
            sandbox_id=sandbox_id,
            node_id=node_id,
            mount_path=mount_path,
            read_only=read_only,
            deadline=deadline,
        )

    def bind(self, at: datetime, epoch: int) -> None:
        """The disk is the sandbox's."""
        if LIFECYCLE.admits("bind", self.state):
            self.record(LeaseBound, at, epoch=epoch)

    def release(self, at: datetime, why: Release = "sandbox-ended") -> None:
        if LIFECYCLE.admits("release", self.state):
            self.record(LeaseReleased, at, reason=why)

    def fail(self, at: datetime, failure: Failure) -> None:
        """It will not be bound any more."""
        if LIFECYCLE.admits("fail", self.state):
            self.record(LeaseFailed, at, failure=failure)
