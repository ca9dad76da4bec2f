"""What a job can be, and which transition is legal.

PENDING  accepted; nobody has taken it up yet. What it started may already answer, and that counts.
RUNNING  ``holder`` works on it, until ``lease_until`` unless it is heard to move on.
READY    done; ``result`` says what came of it.
FAILED   not done; ``phase`` says where it ended and ``failure`` why.

Terminal never leaves terminal, and progress never goes back. A job whose lease is over fails as expired: nothing is stuck for ever.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.kernel.lifecycle import Lifecycle


class JobState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    READY = "READY"
    FAILED = "FAILED"


LIFECYCLE: Final = Lifecycle(
    "job",
    JobState,
    """
                 PENDING  RUNNING  READY  FAILED
    start        RUNNING  =        =      =
    advance      PENDING  RUNNING  =      =
    pull         PENDING  RUNNING  =      =
    set_targets  PENDING  RUNNING  =      =
    note         PENDING  RUNNING  =      =
    renew        PENDING  RUNNING  =      =
    expire       FAILED   FAILED   =      =
    cancel       FAILED   FAILED   !      =
    succeed      READY    READY    =      =
    fail         FAILED   FAILED   =      =
    """,
)
