"""What a disk can be, and what may happen to it then: states, lifecycle table, and the values it remembers.

PROVISIONING  its node makes it.
PROVISIONED   it can be used, by one sandbox at a time.
ERROR         it could not be made, or its node was evicted. Nothing can use it; it can be deleted.
DELETING      its node removes it.
DELETED       nothing is left of it. The name is free again.

A disk is lent to at most one sandbox (``holder``), and mounted for at most one (``attached``). The two differ while a lease waits: then
the disk is not made yet, or a sandbox whose lease is over may still have it mounted. Each mounting has an ``epoch`` of its own, greater
than all before, so that a node knows an order of yesterday (reference/miren-sandbox.md §5.2).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from domain.kernel.aggregate import Record
from domain.kernel.ids import Name
from domain.kernel.lifecycle import Lifecycle

Filesystem = Literal["ext4", "xfs", "btrfs"]
VolumeKind = Literal["image", "directory"]
"""``image``: a file with a file system of its own, which bounds the disk. ``directory``: one of the node's, which bounds nothing."""
SizeMb = Annotated[int, Field(ge=16, le=16_777_216)]
MAX_SNAPSHOTS: Final = 32


class DiskState(StrEnum):
    PROVISIONING = "PROVISIONING"
    PROVISIONED = "PROVISIONED"
    ERROR = "ERROR"
    DELETING = "DELETING"
    DELETED = "DELETED"


LIFECYCLE: Final = Lifecycle(
    "disk",
    DiskState,
    """
                               PROVISIONING  PROVISIONED   ERROR         DELETING         DELETED
    recreate                   !disk.exists  !disk.exists  !disk.exists  !disk.exists     PROVISIONING
    provisioned                PROVISIONED   =             =             =                =
    fail                       ERROR         =             =             =                =
    lose                       ERROR         ERROR         =             DELETED          =
    lend                       PROVISIONING  PROVISIONED   !             !                !disk.not-found
    attach                     =             PROVISIONED   =             =                =
    hand_back                  PROVISIONING  PROVISIONED   ERROR         =                =
    detach                     =             PROVISIONED   =             =                =
    request_grow               !             PROVISIONED   !             !                !disk.not-found
    request_snapshot           !             PROVISIONED   !             !                !disk.not-found
    request_snapshot_removal   !             PROVISIONED   !             !                !disk.not-found
    operation_done             =             PROVISIONED   =             =                =
    operation_failed           =             PROVISIONED   =             =                =
    request_delete             DELETING      DELETING      DELETING      =                !disk.not-found
    delete_failed              =             =             =             DELETING         =
    deleted                    =             =             =             DELETED          =
    """,
)

OperationKind = Literal["grow", "snapshot", "remove-snapshot"]


class DiskOperation(Record):
    """What is being done to the disk right now, and until when it must have ended. ``snapshot``: the name of one."""

    kind: OperationKind
    command: str
    deadline: datetime
    size_mb: int | None = None
    snapshot: str | None = None


class DiskSnapshot(Record):
    """The disk as it was at one moment. ``size_mb``: of the disk; ``size_bytes``: what it takes of the node's storage."""

    name: Name
    at: datetime
    size_mb: int
    size_bytes: int = 0


class Source(Record):
    """What a disk is made of: a snapshot of another one, on the same node."""

    volume_id: str
    disk: Name
    snapshot: Name
