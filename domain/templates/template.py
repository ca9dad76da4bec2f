"""The template: what sandboxes start from. It has an artifact, a recipe, and replicas on nodes (aggregates of their own).

PENDING          its first job is at work.
READY            every replica is ready.
PARTIALLY_READY  some replicas are; sandboxes start on their nodes.
FAILED           none is.
DELETING         its replicas are being removed.
DELETED          gone; the aggregate remembers that the id is used up.

At most one job works on it (``active_job``); what an earlier job still says is no news. A redo keeps the status until it settles, so that
sandboxes go on starting from untouched nodes (reference/cubesandbox.md §2.1, §4.1).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event, Record
from domain.kernel.errors import Refused
from domain.kernel.ids import SandboxId
from domain.kernel.lifecycle import Lifecycle
from domain.kernel.text import ErrorText, Why, clip
from domain.sandboxes.spec import Argv, DriverName, Env, Port, Ports, Recipe


class TemplateState(StrEnum):
    PENDING = "PENDING"
    READY = "READY"
    PARTIALLY_READY = "PARTIALLY_READY"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"


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
    request_delete          !template.attempt-in-progress  DELETING  DELETING  DELETING         =         !template.not-found
    request_delete:force    DELETING         DELETING         DELETING         DELETING         =         !template.not-found
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

    ``nodes`` limits where it is made ready; empty: everywhere. ``registry_secret`` is sealed before it gets here.
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
    origin_sandbox_id: SandboxId | None = None


class TemplateCreated(CreatedEvent):
    TOPIC = "template.created"
    request: TemplateRequest
    alias: str | None = None
    job_id: str

    def apply(self, template: Template) -> None:
        template.state = TemplateState.PENDING
        template.request = self.request
        template.alias = self.alias
        template.alias_held = False
        template.active_job = self.job_id
        template.last_job = self.job_id
        template.artifact_id = None
        template.image_digest = None
        template.image_config = {}
        template.recipe = None
        template.ready = 0
        template.failed = 0
        template.total = 0
        template.last_error = None
        template.created = self.timestamp


class TemplateJobBegun(Event):
    TOPIC = "template.job-begun"
    job_id: str
    mode: str | None = None

    def apply(self, template: Template) -> None:
        template.active_job = self.job_id
        template.last_job = self.job_id


class TemplateArtifactBound(Event):
    TOPIC = "template.artifact-bound"
    artifact_id: str
    image_digest: str
    image_config: dict[str, Any] = {}

    def apply(self, template: Template) -> None:
        template.artifact_id = self.artifact_id
        template.image_digest = self.image_digest
        template.image_config = self.image_config


class TemplateRecipeSet(Event):
    TOPIC = "template.recipe-set"
    recipe: Recipe

    def apply(self, template: Template) -> None:
        template.recipe = self.recipe


class TemplateSettled(Event):
    """Its job is over (``job_id``), or its replicas changed without one (None); the counts are over all its replicas."""

    TOPIC = "template.settled"
    job_id: str | None = None
    status: TemplateState
    ready: int
    failed: int
    total: int
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = self.status
        template.ready, template.failed, template.total = self.ready, self.failed, self.total
        template.last_error = self.error
        if self.job_id is not None:
            template.active_job = None


class TemplateFailed(Event):
    """Its job failed before there was anything to count."""

    TOPIC = "template.failed"
    job_id: str
    status: TemplateState
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = self.status
        template.last_error = self.error
        template.active_job = None


class TemplateAliasClaimed(Event):
    TOPIC = "template.alias-claimed"
    alias: str

    def apply(self, template: Template) -> None:
        template.alias = self.alias
        template.alias_held = True


class TemplateAliasLost(Event):
    TOPIC = "template.alias-lost"
    alias: str

    def apply(self, template: Template) -> None:
        template.alias = None
        template.alias_held = False


class TemplateDeleteRequested(Event):
    """``failed_job``: the job that this delete cut off, by force."""

    TOPIC = "template.delete-requested"
    failed_job: str | None = None

    def apply(self, template: Template) -> None:
        template.state = TemplateState.DELETING
        template.active_job = None


class TemplateDeleted(Event):
    TOPIC = "template.deleted"

    def apply(self, template: Template) -> None:
        template.state = TemplateState.DELETED
        template.alias = None
        template.alias_held = False


class TemplateDeleteFailed(Event):
    TOPIC = "template.delete-failed"
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = TemplateState.FAILED
        template.last_error = self.error


class Template(Aggregate):
    TOPIC = "template"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: TemplateState
    request: TemplateRequest
    alias: str | None
    """The name it has (``alias_held``), or shall get when it settles; None when it never had one, or lost it to another template."""
    alias_held: bool
    active_job: str | None
    last_job: str
    artifact_id: str | None
    image_digest: str | None
    image_config: dict[str, Any]
    recipe: Recipe | None
    ready: int
    failed: int
    total: int
    last_error: str | None
    created: datetime

    @classmethod
    def create(cls, id: str, at: datetime, request: TemplateRequest, alias: str | None, job_id: str) -> Self:  # noqa: A002
        return cls.begin(TemplateCreated, id, at, request=request, alias=alias, job_id=job_id)

    @property
    def status(self) -> str:
        """The contract's word."""
        return self.state.value

    def begin_job(self, at: datetime, job_id: str, mode: str | None = None) -> None:
        """Another job takes it up. Raises ``template.attempt-in-progress`` while one is at work."""
        if job_id == self.last_job:
            return
        self._refuse_while_busy()
        if LIFECYCLE.admits("begin_job", self.state):
            self.record(TemplateJobBegun, at, job_id=job_id, mode=mode)

    def bind_artifact(
        self, at: datetime, job_id: str, artifact_id: str, image_digest: str, image_config: dict[str, Any] | None = None
    ) -> None:
        """Its job knows which bytes it is made of."""
        news = (artifact_id, image_digest, image_config or {})
        known = (self.artifact_id, self.image_digest, self.image_config)
        if job_id == self.active_job and news != known and LIFECYCLE.admits("bind_artifact", self.state):
            self.record(TemplateArtifactBound, at, artifact_id=artifact_id, image_digest=image_digest, image_config=image_config or {})

    def set_recipe(self, at: datetime, job_id: str, recipe: Recipe) -> None:
        if job_id == self.active_job and recipe != self.recipe and LIFECYCLE.admits("set_recipe", self.state):
            self.record(TemplateRecipeSet, at, recipe=recipe)

    def settle(self, at: datetime, job_id: str, ready: int, failed: int, total: int, error: Why = None) -> None:
        """Its job is over: what it is now, by all its replicas."""
        row = f"settle:{_how_many(ready, total)}"
        if job_id == self.active_job and LIFECYCLE.admits(row, self.state):
            self._settle(at, row, job_id=job_id, ready=ready, failed=failed, total=total, error=error)

    def fail(self, at: datetime, job_id: str, error: Why) -> None:
        """Its job failed before any replica changed: what was ready stays so."""
        if job_id == self.active_job and LIFECYCLE.admits("fail", self.state):
            self.record(TemplateFailed, at, job_id=job_id, status=LIFECYCLE.target("fail", self.state), error=clip(error))

    def replicas_changed(self, at: datetime, ready: int, failed: int, total: int, error: Why = None) -> None:
        """Replicas came, went or broke while no job is at work; a job at work says so itself, at its end."""
        row = f"replicas_changed:{_how_many(ready, total)}"
        shown = None if row.endswith(":all") else clip(error)
        same = (ready, failed, total, shown) == (self.ready, self.failed, self.total, self.last_error)
        if not same and self.active_job is None and LIFECYCLE.admits(row, self.state):
            self._settle(at, row, job_id=None, ready=ready, failed=failed, total=total, error=error)

    def alias_claimed(self, at: datetime, alias: str) -> None:
        """The alias now resolves to it (reference/cubesandbox.md §4.5: before its readiness is visible)."""
        if (alias, True) != (self.alias, self.alias_held) and LIFECYCLE.admits("alias_claimed", self.state):
            self.record(TemplateAliasClaimed, at, alias=alias)

    def alias_lost(self, at: datetime, alias: str) -> None:
        """Another template took the alias over."""
        if alias == self.alias and LIFECYCLE.admits("alias_lost", self.state):
            self.record(TemplateAliasLost, at, alias=alias)

    def request_delete(self, at: datetime, force: bool = False) -> None:
        """Begin to remove it. ``force`` cuts off a job that is at work. Whether it is in use is asked before, and never overridden."""
        if LIFECYCLE.admits("request_delete:force" if force else "request_delete", self.state):
            if not force:
                self._refuse_while_busy()
            self.record(TemplateDeleteRequested, at, failed_job=self.active_job)

    def finish_delete(self, at: datetime) -> None:
        if LIFECYCLE.admits("finish_delete", self.state):
            self.record(TemplateDeleted, at)

    def fail_delete(self, at: datetime, error: Why) -> None:
        """It could not be removed; another delete may try again."""
        if LIFECYCLE.admits("fail_delete", self.state):
            self.record(TemplateDeleteFailed, at, error=clip(error))

    def _settle(self, at: datetime, row: str, *, job_id: str | None, ready: int, failed: int, total: int, error: Why) -> None:
        status = LIFECYCLE.target(row, self.state)
        shown = None if status is TemplateState.READY else clip(error)
        self.record(TemplateSettled, at, job_id=job_id, status=status, ready=ready, failed=failed, total=total, error=shown)

    def _refuse_while_busy(self) -> None:
        if self.active_job is not None:
            raise Refused(
                "template.attempt-in-progress",
                f"job {self.active_job} is at work on template {self.id}",
                retryable=True,
                details={"job_id": self.active_job},
            )


def _how_many(ready: int, total: int) -> str:
    return {TemplateState.READY: "all", TemplateState.PARTIALLY_READY: "some"}.get(settled_state(ready, total), "none")
