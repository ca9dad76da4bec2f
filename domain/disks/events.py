"""What happens to disks, as it stands in the log. ``apply`` writes down; it never decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.disks.states import DiskOperation, DiskSnapshot, DiskState, Filesystem, Source, VolumeKind
from domain.kernel.aggregate import CreatedEvent, Event
from domain.nodes.orders import Failure

if TYPE_CHECKING:
    from domain.disks.disk import Disk


class DiskCreated(CreatedEvent):
    """``volume_id``: what its node knows it by; no two disks ever have the same, also of one name."""

    TOPIC = "disk.created"
    volume_id: str
    node_id: str
    size_mb: int
    filesystem: Filesystem | None = None
    source: Source | None = None

    def apply(self, disk: Disk) -> None:
        disk.epoch = 0
        _begin(disk, self)


class DiskRecreated(Event):
    """Another disk under the name of one that was deleted. Its epochs go on, so that they never repeat."""

    TOPIC = "disk.recreated"
    volume_id: str
    node_id: str
    size_mb: int
    filesystem: Filesystem | None = None
    source: Source | None = None

    def apply(self, disk: Disk) -> None:
        _begin(disk, self)


class DiskProvisioned(Event):
    """It is there. ``quota``: nothing can write more to it than its size."""

    TOPIC = "disk.provisioned"
    kind: VolumeKind = "image"
    quota: bool = True

    def apply(self, disk: Disk) -> None:
        disk.state = DiskState.PROVISIONED
        disk.kind = self.kind
        disk.quota = self.quota


class DiskFailed(Event):
    """It could not be made; who waits for it is told next."""

    TOPIC = "disk.failed"
    failure: Failure

    def apply(self, disk: Disk) -> None:
        disk.state = DiskState.ERROR
        disk.failure = self.failure


class DiskLost(Event):
    """Its node was evicted, and what was on it is given up by decision: nothing there writes to it any more (design.md §10.5)."""

    TOPIC = "disk.lost"
    failure: Failure

    def apply(self, disk: Disk) -> None:
        disk.state = DiskState.ERROR
        disk.failure = self.failure
        disk.holder = None
        disk.bound = False
        disk.attached = None
        disk.operation = None


class DiskLent(Event):
    """It is promised to a sandbox, which has it as soon as it is there and mounted nowhere."""

    TOPIC = "disk.lent"
    sandbox_id: str

    def apply(self, disk: Disk) -> None:
        disk.holder = self.sandbox_id


class DiskAttached(Event):
    """The holder may mount it, and nobody else, until it is detached."""

    TOPIC = "disk.attached"
    sandbox_id: str
    epoch: int

    def apply(self, disk: Disk) -> None:
        disk.bound = True
        disk.attached = self.sandbox_id
        disk.epoch = self.epoch


class DiskReturned(Event):
    """The holder never had it, and does not wait for it any more."""

    TOPIC = "disk.returned"
    sandbox_id: str

    def apply(self, disk: Disk) -> None:
        disk.holder = None


class DiskReleased(Event):
    """The lease is over; the mount goes when its sandbox is down."""

    TOPIC = "disk.released"
    sandbox_id: str

    def apply(self, disk: Disk) -> None:
        disk.holder = None
        disk.bound = False


class DiskDetached(Event):
    """The sandbox that had it mounted is down, and its mount with it."""

    TOPIC = "disk.detached"
    sandbox_id: str

    def apply(self, disk: Disk) -> None:
        disk.attached = None


class DiskOperationBegun(Event):
    TOPIC = "disk.operation-begun"
    operation: DiskOperation

    def apply(self, disk: Disk) -> None:
        disk.operation = self.operation


class DiskGrown(Event):
    TOPIC = "disk.grown"
    command: str
    size_mb: int

    def apply(self, disk: Disk) -> None:
        disk.size_mb = self.size_mb
        disk.operation = None


class DiskSnapshotTaken(Event):
    TOPIC = "disk.snapshot-taken"
    command: str
    snapshot: DiskSnapshot

    def apply(self, disk: Disk) -> None:
        disk.snapshots = {**disk.snapshots, self.snapshot.name: self.snapshot}
        disk.operation = None


class DiskSnapshotRemoved(Event):
    TOPIC = "disk.snapshot-removed"
    command: str
    snapshot: str

    def apply(self, disk: Disk) -> None:
        disk.snapshots = {name: kept for name, kept in disk.snapshots.items() if name != self.snapshot}
        disk.operation = None


class DiskOperationFailed(Event):
    TOPIC = "disk.operation-failed"
    kind: str
    command: str
    failure: Failure

    def apply(self, disk: Disk) -> None:
        disk.operation = None


class DiskDeleteRequested(Event):
    TOPIC = "disk.delete-requested"
    command: str

    def apply(self, disk: Disk) -> None:
        disk.state = DiskState.DELETING
        disk.operation = None
        disk.attempt = 1


class DiskDeleteFailed(Event):
    """Its node could not remove it; it is told again, under ``attempt``."""

    TOPIC = "disk.delete-failed"
    attempt: int
    failure: Failure

    def apply(self, disk: Disk) -> None:
        disk.attempt = self.attempt
        disk.failure = self.failure


class DiskDeleted(Event):
    TOPIC = "disk.deleted"

    def apply(self, disk: Disk) -> None:
        disk.state = DiskState.DELETED
        disk.snapshots = {}


def _begin(disk: Disk, event: DiskCreated | DiskRecreated) -> None:
    disk.state = DiskState.PROVISIONING
    disk.volume_id = event.volume_id
    disk.node_id = event.node_id
    disk.size_mb = event.size_mb
    disk.filesystem = event.filesystem
    disk.source = event.source
    disk.kind = "image"
    disk.quota = True
    disk.holder = None
    disk.bound = False
    disk.attached = None
    disk.operation = None
    disk.snapshots = {}
    disk.attempt = 1
    disk.failure = None
    disk.since = event.timestamp
