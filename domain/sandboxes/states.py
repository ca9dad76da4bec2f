"""What a sandbox can be, and what may happen to it then: states, lifecycle table, and the values it remembers.

PENDING     asked for; a node is bringing it up (the ``provisioning`` of the same id tells how far).
NOT_READY   the node has begun to boot it; still nobody can use it.
RUNNING     it runs. It gets here once (reference/miren-sandbox.md §1.7).
PAUSED      frozen; its time to live stands still too.
STOPPED     "please tear down": it ended, or somebody wants it to. Never overwritten by a late "it runs".
DEAD        torn down, or never built. Never rewritten, not even by another "it is dead".

Beside the state there is at most one ``operation`` in progress (pause, resume, rollback, snapshot, limits, restart), with a deadline:
nothing stays busy for ever (design.md §10.4). A second one is refused with ``sandbox.illegal-state`` and ``details.operation``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from domain.kernel.aggregate import Record
from domain.kernel.lifecycle import Lifecycle
from domain.nodes.orders import Failure
from domain.sandboxes.spec import Limits, OnTtl, TtlKind


class SandboxState(StrEnum):
    PENDING = "PENDING"
    NOT_READY = "NOT_READY"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    DEAD = "DEAD"


LIFECYCLE: Final = Lifecycle(
    "sandbox",
    SandboxState,
    """
                       PENDING    NOT_READY  RUNNING  PAUSED   STOPPED  DEAD
    starting           NOT_READY  =          =        =        =        =
    mark_running       RUNNING    RUNNING    =        =        =        =
    fail_start         DEAD       DEAD       =        =        DEAD     =
    request_pause      !          !          RUNNING  =        !        !
    paused             =          =          PAUSED   =        =        =
    request_resume     !          !          =        PAUSED   !        !
    resumed            =          =          =        RUNNING  =        =
    request_rollback   !          !          RUNNING  PAUSED   !        !
    rolled_back        =          =          RUNNING  RUNNING  =        =
    rollback_failed:untouched  =  =          RUNNING  PAUSED   =        =
    rollback_failed:fatal      =  =          STOPPED  STOPPED  =        =
    request_limits     !          !          RUNNING  PAUSED   !        !
    limits_changed     =          =          RUNNING  PAUSED   =        =
    begin_snapshot     !          !          RUNNING  PAUSED   !        !
    end_snapshot       =          =          RUNNING  PAUSED   =        =
    operation_failed   =          =          RUNNING  PAUSED   =        =
    operation_expired  =          =          RUNNING  PAUSED   =        =
    request_stop       STOPPED    STOPPED    STOPPED  STOPPED  =        =
    request_delete     STOPPED    STOPPED    STOPPED  STOPPED  STOPPED  =
    exited             STOPPED    STOPPED    STOPPED  STOPPED  =        =
    destroyed          DEAD       DEAD       DEAD     DEAD     DEAD     =
    forget             =          =          =        =        =        DEAD
    crash              =          =          RUNNING  =        =        =
    restarted          =          =          RUNNING  =        =        =
    restart_failed     =          =          RUNNING  =        =        =
    require_exec       !          !          =        !        !        !
    require_disk       !          !          =        =        !        !
    require_port       =          =          =        =        !        !
    executed           =          =          RUNNING  PAUSED   STOPPED  =
    ports_seen         =          =          RUNNING  =        =        =
    hand_over          !          !          RUNNING  !        !        !
    set_ttl            PENDING    NOT_READY  RUNNING  PAUSED   !        !
    ttl_due            =          =          RUNNING  =        =        =
    touch              =          =          RUNNING  =        =        =
    """,
)

HORIZON: Final = timedelta(hours=1)
"""How long the dead are shown, counted from their death (reference/miren-sandbox.md §3.7). The log has them for ever."""

Reason = Literal[
    "ttl_expired",
    "user_stop",
    "user_delete",
    "exited",
    "oom",
    "killed",
    "startup_failed",
    "node_lost",
    "rollback_failed",
    "template_deleted",
    "node_drained",
    "scaled_down",
]
"""Why a sandbox ended; every ending says it (reference/user-experience.md §6.2)."""

TOO_LATE: Final = Failure(code="template.deleted", message="its template was deleted before it was created")
"""Why a sandbox with the reason ``template_deleted`` did not come up."""

ExitReason = Literal["exited", "oom", "lost", "killed"]
"""What a node says of a main process that ended by itself."""

OperationKind = Literal["pause", "resume", "rollback", "snapshot", "limits", "restart"]


class Operation(Record):
    """What is being done to the sandbox right now, and until when it must have ended."""

    kind: OperationKind
    command: str
    attempt: int = 1
    deadline: datetime
    snapshot_id: str | None = None
    generation: int | None = None
    job_id: str | None = None
    limits: Limits | None = None
    not_before: datetime | None = None
    """When it is due; None: at once."""


class Ttl(Record):
    """How long a sandbox may live. ``seconds`` None: for ever. ``idle``: counted from the last activity, else from the start."""

    seconds: Annotated[float, Field(ge=0)] | None = None
    kind: TtlKind = "absolute"
    on_ttl: OnTtl = "delete"
    auto_resume: bool = False

    @field_validator("seconds", mode="before")
    @classmethod
    def _negative_is_for_ever(cls, seconds: Any) -> Any:
        """-1 is how callers say it (reference/cubesandbox.md §9)."""
        return None if isinstance(seconds, int | float) and seconds < 0 else seconds


class Exit(Record):
    """How the main process ended. ``code`` None: nobody could see it."""

    code: int | None = None
    at: datetime
