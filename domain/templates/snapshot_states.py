"""The snapshot: memory and disk of a sandbox at one moment, to start from or to go back to (reference/cubesandbox.md §5).

CREATING  the node takes it.
READY     it can be used.
FAILED    it could not be taken, or the node lost it. Listed, and deletable.
DELETED   a tombstone: hidden, refuses new use, and goes for good when the last sandbox that runs on it is gone (§5.3, the later rule).
GONE      nothing is left of it.

``refs`` are the runtime refs: which sandboxes run on it now. A sandbox is on at most one snapshot; whoever moves it detaches it here and
attaches it there. ``places`` are the nodes that have its bytes, ``stored`` says what of it everybody can fetch. While it has either, a node
that loses it costs nothing but a place.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from domain.kernel.lifecycle import Lifecycle


class SnapshotState(StrEnum):
    CREATING = "CREATING"
    READY = "READY"
    FAILED = "FAILED"
    DELETED = "DELETED"
    GONE = "GONE"


LIFECYCLE: Final = Lifecycle(
    "snapshot",
    SnapshotState,
    """
                    CREATING  READY    FAILED   DELETED              GONE
    require_usable  !         =        !        !snapshot.not-found  !snapshot.not-found
    ready           READY     =        =        =                    =
    fail            FAILED    =        =        =                    =
    attach          !         READY    !        !snapshot.not-found  !snapshot.not-found
    detach          =         READY    FAILED   DELETED              =
    refs_unlisted   =         READY    FAILED   DELETED              =
    refs_listed     =         READY    FAILED   DELETED              =
    begin_rollback  !         READY    !        !snapshot.not-found  !snapshot.not-found
    end_rollback:on_it    =   READY    FAILED   DELETED              =
    end_rollback:as_was   =   READY    FAILED   DELETED              =
    request_delete  !         DELETED  DELETED  =                    !snapshot.not-found
    finish_delete   =         =        =        GONE                 =
    lost            =         FAILED   =        =                    =
    lost:elsewhere  =         READY    =        =                    =
    place           !         READY    !        !snapshot.not-found  !snapshot.not-found
    unplace         =         =        =        DELETED              =
    request_export  !         READY    !        !snapshot.not-found  !snapshot.not-found
    stored          =         READY    =        =                    =
    export_failed   =         READY    =        =                    =
    unstored        =         READY    =        =                    =
    unstored:last   =         FAILED   =        =                    =
    """,
)
