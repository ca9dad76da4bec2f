"""Operations, their phases, and how far each phase is on the way to 100 (reference/cubesandbox.md §2.2, §3.3)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from domain.kernel.aggregate import Record


class Operation(StrEnum):
    CREATE = "CREATE"
    REDO = "REDO"
    COMMIT = "COMMIT"
    CONVERGE = "CONVERGE"
    DELETE = "DELETE"
    SNAPSHOT_CREATE = "SNAPSHOT_CREATE"
    SNAPSHOT_ROLLBACK = "SNAPSHOT_ROLLBACK"
    SNAPSHOT_DELETE = "SNAPSHOT_DELETE"
    CLONE = "CLONE"


class Phase(StrEnum):
    PULLING = "PULLING"
    UNPACKING = "UNPACKING"
    BUILDING_EXT4 = "BUILDING_EXT4"
    GENERATING_JSON = "GENERATING_JSON"
    DISTRIBUTING = "DISTRIBUTING"
    CREATING_TEMPLATE = "CREATING_TEMPLATE"
    SNAPSHOTTING = "SNAPSHOTTING"
    REGISTERING = "REGISTERING"
    CLONING = "CLONING"
    ROLLBACK_PREPARING = "ROLLBACK_PREPARING"
    ROLLBACK_DRIVING = "ROLLBACK_DRIVING"
    ROLLBACK_RECOVERING = "ROLLBACK_RECOVERING"
    DELETING = "DELETING"
    READY = "READY"


_MAKE: Final[dict[Phase, int]] = {
    Phase.PULLING: 5,
    Phase.UNPACKING: 20,
    Phase.BUILDING_EXT4: 35,
    Phase.GENERATING_JSON: 60,
    Phase.DISTRIBUTING: 70,
    Phase.CREATING_TEMPLATE: 85,
    Phase.SNAPSHOTTING: 90,
    Phase.REGISTERING: 95,
    Phase.READY: 100,
}

PROGRESS: Final[dict[Operation, dict[Phase, int]]] = {
    Operation.CREATE: _MAKE,
    Operation.REDO: _MAKE,
    Operation.COMMIT: {
        Phase.SNAPSHOTTING: 10,
        Phase.BUILDING_EXT4: 30,
        Phase.DISTRIBUTING: 50,
        Phase.CREATING_TEMPLATE: 60,
        Phase.REGISTERING: 70,
        Phase.READY: 100,
    },
    Operation.CONVERGE: {
        Phase.DISTRIBUTING: 10,
        Phase.CREATING_TEMPLATE: 50,
        Phase.SNAPSHOTTING: 75,
        Phase.REGISTERING: 90,
        Phase.READY: 100,
    },
    Operation.SNAPSHOT_CREATE: {Phase.SNAPSHOTTING: 10, Phase.REGISTERING: 85, Phase.READY: 100},
    Operation.SNAPSHOT_ROLLBACK: {
        Phase.ROLLBACK_PREPARING: 0,
        Phase.ROLLBACK_DRIVING: 25,
        Phase.ROLLBACK_RECOVERING: 90,
        Phase.READY: 100,
    },
    Operation.CLONE: {Phase.SNAPSHOTTING: 10, Phase.REGISTERING: 40, Phase.CLONING: 50, Phase.READY: 100},
    Operation.DELETE: {Phase.DELETING: 20, Phase.READY: 100},
    Operation.SNAPSHOT_DELETE: {Phase.DELETING: 20, Phase.READY: 100},
}
"""The phases of each operation in their order, with the progress at which each begins."""

STARTS_IN: Final[dict[Operation, Phase]] = {Operation.SNAPSHOT_ROLLBACK: Phase.ROLLBACK_DRIVING}
"""The phase that an operation is in as soon as somebody works on it, where waiting is a phase of its own (§2.2, §5.4)."""

PULL_STEP: Final = 5
"""Percentage points that a pull must have moved to be news; every event is kept for ever."""


class PullProgress(Record):
    """How far an image has come: bytes and layers, and bytes per second right now. A total of 0 is not known yet."""

    bytes: Annotated[int, Field(ge=0)] = 0
    total_bytes: Annotated[int, Field(ge=0)] = 0
    layers: Annotated[int, Field(ge=0)] = 0
    total_layers: Annotated[int, Field(ge=0)] = 0
    bytes_per_s: Annotated[int, Field(ge=0)] = 0

    @property
    def percent(self) -> int:
        """Of the bytes; 0 while the total is unknown."""
        return min(100, self.bytes * 100 // self.total_bytes) if self.total_bytes else 0

    @property
    def finished(self) -> bool:
        return bool(self.total_bytes) and self.bytes >= self.total_bytes and self.layers >= self.total_layers


def first_phase(operation: Operation) -> Phase:
    """Where an operation begins."""
    return next(iter(PROGRESS[operation]))


def last_phase(operation: Operation) -> Phase:
    """The phase of a job that ended well: commits and snapshots end while registering, everything else in READY (§2.2)."""
    return Phase.REGISTERING if operation in {Operation.COMMIT, Operation.SNAPSHOT_CREATE} else Phase.READY


def rank(operation: Operation, phase: Phase) -> int:
    """The phase's place in the operation, -1 for one that the operation does not have."""
    phases = list(PROGRESS[operation])
    return phases.index(phase) if phase in phases else -1


def progress_of(operation: Operation, phase: Phase) -> int:
    """At which progress the phase begins; 0 for one that the operation does not have."""
    return PROGRESS[operation].get(phase, 0)


def worth_telling(before: PullProgress, now: PullProgress) -> bool:
    """Is a pull's progress news? A step of 5 points, or its end; never a step back."""
    if now.percent < before.percent or before.finished:
        return False
    return now.finished or now.percent - before.percent >= PULL_STEP
