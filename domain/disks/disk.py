"""The disk: storage on one node that outlives sandboxes. Its id is its name, so that two of one name are impossible (design.md §4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Self

from domain.disks import events
from domain.disks.states import (
    LIFECYCLE,
    MAX_SNAPSHOTS,
    DiskOperation,
    DiskSnapshot,
    DiskState,
    Filesystem,
    OperationKind,
    Source,
    VolumeKind,
)
from domain.kernel.aggregate import Aggregate
from domain.kernel.errors import Refused, not_found
from domain.nodes.orders import Failure


class Disk(Aggregate):
    TOPIC = "disk"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: DiskState
    volume_id: str
    node_id: str
    size_mb: int
    filesystem: Filesystem | None
    """None: whatever its node makes of it, without a file system of its own."""
    source: Source | None
    kind: VolumeKind
    quota: bool
    holder: str | None
    """The sandbox that it is lent to: with ``bound``, to use; without, to wait for."""
    bound: bool
    attached: str | None
    """The sandbox that may have it mounted."""
    epoch: int
    operation: DiskOperation | None
    snapshots: dict[str, DiskSnapshot]
    attempt: int
    """At being removed."""
    failure: Failure | None
    since: datetime
    """When it was asked for; a disk of the same name before it does not count."""

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        volume_id: str,
        node_id: str,
        size_mb: int,
        filesystem: Filesystem | None = None,
        source: Source | None = None,
    ) -> Self:
        """A name that no disk has had yet."""
        return cls.begin(
            events.DiskCreated, id, at, volume_id=volume_id, node_id=node_id, size_mb=size_mb, filesystem=filesystem, source=source
        )

    def recreate(
        self,
        at: datetime,
        volume_id: str,
        node_id: str,
        size_mb: int,
        filesystem: Filesystem | None = None,
        source: Source | None = None,
    ) -> None:
        """Use the name of a deleted disk again. Raises ``disk.exists``."""
        if LIFECYCLE.admits("recreate", self.state):
            self.record(
                events.DiskRecreated,
                at,
                volume_id=volume_id,
                node_id=node_id,
                size_mb=size_mb,
                filesystem=filesystem,
                source=source,
            )

    # ------------------------------------------------------------------------------------------------ what its node says

    def provisioned(self, at: datetime, volume_id: str, volume_kind: VolumeKind = "image", quota: bool = True) -> None:
        if volume_id == self.volume_id and LIFECYCLE.admits("provisioned", self.state):
            self.record(events.DiskProvisioned, at, kind=volume_kind, quota=quota)

    def fail(self, at: datetime, volume_id: str, failure: Failure) -> None:
        """It could not be made."""
        if volume_id == self.volume_id and LIFECYCLE.admits("fail", self.state):
            self.record(events.DiskFailed, at, failure=failure)

    def lose(self, at: datetime, failure: Failure) -> None:
        """Its node will never answer again."""
        if LIFECYCLE.admits("lose", self.state):
            if self.state is DiskState.DELETING:
                self.record(events.DiskDeleted, at)
            else:
                self.record(events.DiskLost, at, failure=failure)

    # ------------------------------------------------------------------------------------------------------ who has it

    def lend(self, at: datetime, sandbox_id: str) -> None:
        """Promise it to a sandbox. Raises ``disk.busy`` while another one has it, or waits for it."""
        if not LIFECYCLE.admits("lend", self.state) or self.holder == sandbox_id:
            return
        if self.holder is not None:
            raise Refused("disk.busy", self._who(self.holder), retryable=True, details=self._held_by(self.holder))
        self.record(events.DiskLent, at, sandbox_id=sandbox_id)

    @property
    def free(self) -> bool:
        """Is it there, and mounted nowhere?"""
        return self.state is DiskState.PROVISIONED and self.attached is None

    def attach(self, at: datetime, sandbox_id: str) -> None:
        """Let the holder have it, if it is free; it is ``bound`` then, under a new ``epoch``."""
        if LIFECYCLE.admits("attach", self.state) and self.free and self.holder == sandbox_id:
            self.record(events.DiskAttached, at, sandbox_id=sandbox_id, epoch=self.epoch + 1)

    def hand_back(self, at: datetime, sandbox_id: str) -> None:
        """The lease of that sandbox is over."""
        if self.holder == sandbox_id and LIFECYCLE.admits("hand_back", self.state):
            self.record(events.DiskReleased if self.bound else events.DiskReturned, at, sandbox_id=sandbox_id)

    def detach(self, at: datetime, sandbox_id: str) -> None:
        """Nothing of that sandbox has it mounted any more. One whose lease is not over keeps it."""
        if self.attached == sandbox_id and self.holder != sandbox_id and LIFECYCLE.admits("detach", self.state):
            self.record(events.DiskDetached, at, sandbox_id=sandbox_id)

    # ----------------------------------------------------------------------------------------------------- what is done to it

    def request_grow(self, at: datetime, command_id: str, size_mb: int, deadline: datetime) -> None:
        """Make it bigger, also while it is in use. Raises ``disk.cannot-shrink``; its own size is already so."""
        if self._begins("request_grow", command_id) and size_mb != self.size_mb:
            if size_mb < self.size_mb:
                raise Refused("disk.cannot-shrink", f"disk {self.id} has {self.size_mb} MiB", details={"size_mb": self.size_mb})
            self._begin(at, "grow", command_id, deadline, size_mb=size_mb)

    def request_snapshot(self, at: datetime, command_id: str, snapshot: str, deadline: datetime) -> None:
        """Keep it as it is now, under a name. Raises ``disk.snapshot-exists`` and ``disk.too-many-snapshots``."""
        if not self._begins("request_snapshot", command_id):
            return
        if snapshot in self.snapshots:
            raise Refused("disk.snapshot-exists", f"disk {self.id} has a snapshot {snapshot!r}", details={"snapshot": snapshot})
        if len(self.snapshots) >= MAX_SNAPSHOTS:
            raise Refused("disk.too-many-snapshots", f"disk {self.id} has {MAX_SNAPSHOTS} snapshots", details={"most": MAX_SNAPSHOTS})
        self._begin(at, "snapshot", command_id, deadline, snapshot=snapshot)

    def request_snapshot_removal(self, at: datetime, command_id: str, snapshot: str, deadline: datetime) -> None:
        """Let a snapshot go. Raises ``disk.snapshot-not-found``."""
        if self._begins("request_snapshot_removal", command_id):
            self.snapshot(snapshot)
            self._begin(at, "remove-snapshot", command_id, deadline, snapshot=snapshot)

    def snapshot(self, name: str) -> DiskSnapshot:
        """One of its snapshots. Raises ``disk.snapshot-not-found``."""
        if name not in self.snapshots:
            raise Refused("disk.snapshot-not-found", f"disk {self.id} has no snapshot {name!r}", details={"snapshot": name})
        return self.snapshots[name]

    def operation_done(self, at: datetime, command_id: str, size_bytes: int = 0) -> None:
        """The node has done it; the answer to another command is no news."""
        operation = self.operation
        if operation is None or operation.command != command_id or not LIFECYCLE.admits("operation_done", self.state):
            return
        match operation.kind:
            case "grow":
                self.record(events.DiskGrown, at, command=command_id, size_mb=operation.size_mb)
            case "snapshot":
                taken = DiskSnapshot(name=operation.snapshot or "", at=at, size_mb=self.size_mb, size_bytes=size_bytes)
                self.record(events.DiskSnapshotTaken, at, command=command_id, snapshot=taken)
            case "remove-snapshot":
                self.record(events.DiskSnapshotRemoved, at, command=command_id, snapshot=operation.snapshot)

    def operation_failed(self, at: datetime, command_id: str, failure: Failure) -> None:
        """The node could not, or did not answer in time."""
        operation = self.operation
        if operation is not None and operation.command == command_id and LIFECYCLE.admits("operation_failed", self.state):
            self.record(events.DiskOperationFailed, at, kind=operation.kind, command=command_id, failure=failure)

    # -------------------------------------------------------------------------------------------------------------- its end

    def request_delete(self, at: datetime, command_id: str) -> None:
        """Let it go, with its snapshots. Raises ``disk.in-use`` while a sandbox has it, waits for it, or may still have it mounted."""
        if LIFECYCLE.admits("request_delete", self.state):
            if (user := self.holder or self.attached) is not None:
                raise Refused("disk.in-use", self._who(user), retryable=True, details=self._held_by(user))
            self.record(events.DiskDeleteRequested, at, command=command_id)

    def delete_failed(self, at: datetime, attempt: int, failure: Failure) -> None:
        """The node could not remove it, at that attempt."""
        if attempt == self.attempt and LIFECYCLE.admits("delete_failed", self.state):
            self.record(events.DiskDeleteFailed, at, attempt=attempt + 1, failure=failure)

    def deleted(self, at: datetime, volume_id: str) -> None:
        if volume_id == self.volume_id and LIFECYCLE.admits("deleted", self.state):
            self.record(events.DiskDeleted, at)

    # ------------------------------------------------------------------------------------------------------------ its rules

    def _who(self, sandbox_id: str) -> str:
        return f"sandbox {sandbox_id} {'has' if self.attached == sandbox_id else 'waits for'} disk {self.id}"

    def _held_by(self, sandbox_id: str) -> dict[str, Any]:
        return {"disk": self.id, "sandbox_id": sandbox_id, "node_id": self.node_id}

    def _begins(self, row: str, command_id: str) -> bool:
        """True: go on. False: this very command is in progress. Raises ``Refused``."""
        admitted = LIFECYCLE.admits(row, self.state)
        busy = self.operation
        if busy is None or busy.command == command_id:
            return admitted and busy is None
        raise Refused(
            "disk.illegal-state",
            f"a {busy.kind} of disk {self.id} is in progress",
            retryable=True,
            details={"state": self.state.value, "allowed": [], "operation": busy.kind},
        )

    def _begin(self, at: datetime, kind: OperationKind, command_id: str, deadline: datetime, **target: Any) -> None:
        operation = DiskOperation(kind=kind, command=command_id, deadline=deadline, **target)
        self.record(events.DiskOperationBegun, at, operation=operation)


def require_there(disk: Disk | None, name: str) -> Disk:
    """The disk, unless there is none of that name now. Raises ``disk.not-found``."""
    if disk is None or disk.state is DiskState.DELETED:
        raise not_found("disk", name)
    return disk
