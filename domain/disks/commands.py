"""What callers can ask of disks (contract.md). A disk is known by its name; ``disk_id`` is the same."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from domain.disks.states import Filesystem, SizeMb
from domain.kernel.aggregate import Record
from domain.kernel.command import Command, Part
from domain.kernel.ids import Name, NodeId, SandboxId

SMALLEST_MB: dict[str, int] = {"ext4": 16, "xfs": 300, "btrfs": 128}
"""Below that, the tools that make these file systems refuse."""


class DiskStatus(Record):
    """What the disk is after the command. ``settled``: did what was asked happen within ``wait_s``?"""

    disk_id: Name
    status: str
    node_id: NodeId
    size_mb: int
    settled: bool = False


class DiskSource(Part):
    """A snapshot of another disk."""

    disk: Name
    snapshot: Name


class Named(Command):
    """A command about one disk, by its name."""

    name: Name


class DiskCreate(Named):
    """Make a disk on a node. Without ``node``, on the one that has the fewest; with a ``source``, where that is.

    Without a ``filesystem`` it is ext4 where the node can make one, and a directory, whose size nobody bounds, elsewhere.
    """

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "create"
    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data", "size_mb": 1024, "wait_s": 30}
    RESULT: ClassVar[type[Record]] = DiskStatus

    size_mb: SizeMb
    filesystem: Filesystem | None = Field(default=None, validate_default=True)
    node: NodeId | None = None
    source: DiskSource | None = None

    @field_validator("filesystem")
    @classmethod
    def _big_enough(cls, filesystem: str | None, info: ValidationInfo) -> str | None:
        smallest = SMALLEST_MB.get(filesystem or "", 0)
        if info.data.get("size_mb", smallest) < smallest:
            raise ValueError(f"{filesystem} needs {smallest} MiB")
        return filesystem


class _OnDisk(Named):
    """One about a disk that is there."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data"}
    RESULT: ClassVar[type[Record] | None] = DiskStatus


class DiskGrow(_OnDisk):
    """Make it bigger, also while a sandbox uses it."""

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "grow"
    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data", "size_mb": 2048, "wait_s": 30}

    size_mb: SizeMb


class DiskSnapshot(_OnDisk):
    """Keep it as it is now, under a name, also while a sandbox uses it. It stays on the node, and goes with the disk."""

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "snapshot"
    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data", "snapshot": "before-upgrade", "wait_s": 30}

    snapshot: Name


class DiskDeleteSnapshot(_OnDisk):
    """Let one of its snapshots go."""

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "delete-snapshot"
    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data", "snapshot": "before-upgrade"}

    snapshot: Name


class DiskDelete(_OnDisk):
    """Remove it with everything on it, and its snapshots. Refused while a sandbox has it."""

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "delete"


class LeaseOver(Record):
    """``sandbox_id``: who had the disk, or waited for it; ``settled``: is nothing of it mounted any more?"""

    disk_id: Name
    sandbox_id: SandboxId | None = None
    settled: bool = False


class DiskRelease(_OnDisk):
    """End the lease of a disk. Without ``force``, only one whose sandbox is not wanted any more; with it, the sandbox is deleted first.

    Nothing is mounted again before the old mount is known to be gone, on whatever node, however long that takes.
    """

    NOUN: ClassVar[str] = "disk"
    VERB: ClassVar[str] = "release"
    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "data", "force": True}
    RESULT: ClassVar[type[Record] | None] = LeaseOver

    force: bool = False
