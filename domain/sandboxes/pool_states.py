"""The pool: sandboxes of one template that are kept running without anybody asking for each of them (reference/miren-sandbox.md §1.10).

ACTIVE    it gets the members that it lacks, and loses those that it has too many of.
DELETING  its members are being stopped.
GONE      it has none; settings make it ACTIVE again.

A pool's id is its template's: a template has one at most.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.kernel.lifecycle import Lifecycle


class PoolState(StrEnum):
    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    GONE = "GONE"


LIFECYCLE: Final = Lifecycle(
    "pool",
    PoolState,
    """
                    ACTIVE    DELETING  GONE
    configure       ACTIVE    !         ACTIVE
    add             ACTIVE    =         =
    ready           ACTIVE    DELETING  =
    retire          ACTIVE    DELETING  =
    left            ACTIVE    DELETING  =
    hand_over       ACTIVE    !         !
    miss            ACTIVE    =         =
    recover         ACTIVE    =         =
    request_delete  DELETING  =         =
    finish          GONE      GONE      =
    """,
)
