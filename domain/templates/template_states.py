"""What a template can be, which transition is legal, and what its creator wanted; what each state means stands in ``template.py``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Record
from domain.kernel.ids import SandboxId
from domain.kernel.lifecycle import Lifecycle
from domain.sandboxes.spec import Argv, DriverName, Env, Port, Ports


class TemplateState(StrEnum):
    PENDING = "PENDING"
    READY = "READY"
    PARTIALLY_READY = "PARTIALLY_READY"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"


GONE: Final = frozenset({TemplateState.DELETING, TemplateState.DELETED})
"""Nobody can ask anything of such a template any more."""

LIFECYCLE: Final = Lifecycle(
    "template",
    TemplateState,
    """
                            PENDING          READY            PARTIALLY_READY  FAILED           DELETING  DELETED
    begin_job               !template.attempt-in-progress  READY            PARTIALLY_READY  FAILED           !         !template.not-found
    bind_artifact           PENDING          READY            PARTIALLY_READY  FAILED           =         =
    set_recipe              PENDING          READY            PARTIALLY_READY  FAILED           =         =
    settle:all              READY            READY            READY            READY            =         =
    settle:some             PARTIALLY_READY  PARTIALLY_READY  PARTIALLY_READY  PARTIALLY_READY  =         =
    settle:none             FAILED           FAILED           FAILED           FAILED           =         =
    fail                    FAILED           READY            PARTIALLY_READY  FAILED           =         =
    replicas_changed:all    =                READY            READY            READY            =         =
    replicas_changed:some   =                PARTIALLY_READY  PARTIALLY_READY  PARTIALLY_READY  =         =
    replicas_changed:none   =                FAILED           FAILED           FAILED           =         =
    alias_claimed           PENDING          READY            PARTIALLY_READY  FAILED           =         =
    alias_lost              PENDING          READY            PARTIALLY_READY  FAILED           DELETING  =
    set_compat_policy       PENDING          READY            PARTIALLY_READY  FAILED           !template.not-found  !template.not-found
    require_startable       =                =                =                =                !template.not-found  !template.not-found
    begin_delete            !template.attempt-in-progress  READY  PARTIALLY_READY  FAILED    =         !template.not-found
    begin_delete:force      PENDING          READY            PARTIALLY_READY  FAILED           =         !template.not-found
    judge_delete:unused     DELETING         DELETING         DELETING         DELETING         =         =
    judge_delete:used       PENDING          READY            PARTIALLY_READY  FAILED           =         =
    finish_delete           !                !                !                !                DELETED   =
    fail_delete             =                =                =                =                FAILED    =
    """,
)


def settled_state(ready: int, total: int) -> TemplateState:
    """What a template is by its replicas: all, some or none ready. None at all counts as none ready (reference/cubesandbox.md §2.1)."""
    if ready == 0:
        return TemplateState.FAILED
    return TemplateState.READY if ready >= total else TemplateState.PARTIALLY_READY


class TemplateRequest(Record):
    """What its creator wanted. ``origin_sandbox_id``: it was committed from this sandbox, so that there is no image to build from again.

    ``nodes`` limits where it is made ready; empty: everywhere. ``min_replicas``, ``max_replicas`` (None: no bound), ``priority``: on how
    many nodes it should and may be, and what comes first (``convergence.py``). ``registry_secret`` is sealed before it gets here.
    """

    image: Annotated[str, StringConstraints(max_length=512)] = ""
    cpu: float | None = None
    memory_mb: int | None = None
    disk_mb: Annotated[int, Field(ge=16, le=16_777_216)] = 1024
    env: Env = {}
    cmd: Argv | None = None
    ports: Ports = ()
    probe_port: Port | None = None
    driver: DriverName | None = None
    nodes: tuple[str, ...] = ()
    egress_ca: bool = False
    registry_user: str | None = None
    registry_secret: str | None = None
    min_replicas: int = 0
    max_replicas: int | None = None
    priority: int = 0
    origin_sandbox_id: SandboxId | None = None
