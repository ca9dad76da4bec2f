"""The template: what sandboxes start from. It has an artifact, a recipe, and replicas on nodes (aggregates of their own).

PENDING          its first job is at work.
READY            every replica is ready.
PARTIALLY_READY  some replicas are; sandboxes start on their nodes.
FAILED           none is.
DELETING         its replicas are being removed.
DELETED          gone; the aggregate remembers that the id is used up.

A delete is decided in two steps (docs/adr/0015-deletes-are-decided-by-the-log.md): it is begun, from which moment on no sandbox can start
from the template, and then judged by the sandboxes that the log had until that moment.

At most one job works on it (``active_job``); what an earlier job still says is no news. A redo keeps the status until it settles, so that
sandboxes go on starting from untouched nodes (reference/cubesandbox.md §2.1, §4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Self

from domain.kernel.aggregate import Aggregate
from domain.kernel.errors import Refused
from domain.kernel.text import Why, clip
from domain.sandboxes.spec import Recipe
from domain.templates import template_events as events
from domain.templates.compat import Policy
from domain.templates.template_states import GONE, LIFECYCLE, TemplateRequest, TemplateState, settled_state

__all__ = ["GONE", "Template", "TemplateRequest", "TemplateState", "settled_state"]


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
    pending_deletes: dict[str, bool]
    """Deletes that are begun and not judged: command id, and whether by force."""
    refused_deletes: dict[str, tuple[str, ...]]
    """Deletes that were refused after they had begun: command id, and the sandboxes that it was for."""
    compat_policy: Policy
    """By which its replicas are judged, wherever that is done (``compat.py``)."""
    created: datetime

    @classmethod
    def create(cls, id: str, at: datetime, request: TemplateRequest, alias: str | None, job_id: str) -> Self:  # noqa: A002
        return cls.begin(events.TemplateCreated, id, at, request=request, alias=alias, job_id=job_id)

    @property
    def committed(self) -> bool:
        """Was it made of a sandbox? Then there is no image to build it from again."""
        return self.request.origin_sandbox_id is not None

    @property
    def status(self) -> str:
        """The contract's word."""
        return self.state.value

    def begin_job(self, at: datetime, job_id: str, mode: str | None = None) -> None:
        """Another job takes it up. Raises ``template.attempt-in-progress`` while one is at work."""
        if job_id == self.last_job:
            return
        self._refuse_while_busy()
        if self.pending_deletes:
            raise Refused("template.attempt-in-progress", f"a delete of template {self.id} is being decided", retryable=True)
        if LIFECYCLE.admits("begin_job", self.state):
            self.record(events.TemplateJobBegun, at, job_id=job_id, mode=mode)

    def bind_artifact(
        self, at: datetime, job_id: str, artifact_id: str, image_digest: str, image_config: dict[str, Any] | None = None
    ) -> None:
        """Its job knows which bytes it is made of."""
        news = (artifact_id, image_digest, image_config or {})
        known = (self.artifact_id, self.image_digest, self.image_config)
        if job_id == self.active_job and news != known and LIFECYCLE.admits("bind_artifact", self.state):
            self.record(
                events.TemplateArtifactBound, at, artifact_id=artifact_id, image_digest=image_digest, image_config=image_config or {}
            )

    def set_recipe(self, at: datetime, job_id: str, recipe: Recipe) -> None:
        if job_id == self.active_job and recipe != self.recipe and LIFECYCLE.admits("set_recipe", self.state):
            self.record(events.TemplateRecipeSet, at, recipe=recipe)

    def settle(self, at: datetime, job_id: str, ready: int, failed: int, total: int, error: Why = None) -> None:
        """Its job is over: what it is now, by all its replicas."""
        row = f"settle:{_how_many(ready, total)}"
        if job_id == self.active_job and LIFECYCLE.admits(row, self.state):
            self._settle(at, row, job_id=job_id, ready=ready, failed=failed, total=total, error=error)

    def fail(self, at: datetime, job_id: str, error: Why) -> None:
        """Its job failed before any replica changed: what was ready stays so."""
        if job_id == self.active_job and LIFECYCLE.admits("fail", self.state):
            self.record(events.TemplateFailed, at, job_id=job_id, status=LIFECYCLE.target("fail", self.state), error=clip(error))

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
            self.record(events.TemplateAliasClaimed, at, alias=alias)

    def alias_lost(self, at: datetime, alias: str) -> None:
        """Another template took the alias over."""
        if alias == self.alias and LIFECYCLE.admits("alias_lost", self.state):
            self.record(events.TemplateAliasLost, at, alias=alias)

    def set_compat_policy(self, at: datetime, policy: Policy) -> None:
        """Judge its replicas by ``policy`` from now on. Raises ``template.not-found`` for one that is going or gone."""
        if LIFECYCLE.admits("set_compat_policy", self.state) and policy != self.compat_policy:
            self.record(events.TemplateCompatPolicySet, at, policy=policy)

    def require_startable(self) -> None:
        """Raises ``template.not-found`` for one that is going or gone, ``template.deleting`` while it is decided whether it goes."""
        LIFECYCLE.admits("require_startable", self.state)
        if self.pending_deletes:
            raise Refused("template.deleting", f"whether template {self.id} is deleted is being decided", retryable=True)

    def begin_delete(self, at: datetime, command_id: str, users: Sequence[str] = (), force: bool = False) -> None:
        """Begin to delete it: nothing starts from it until that is judged. ``users``: sandboxes that are known to live on it.

        Raises ``template.in-use``, which ``force`` does not override, and ``template.attempt-in-progress``, which it does.
        """
        if not force:
            self._refuse_while_busy()
        row = "begin_delete:force" if force else "begin_delete"
        if command_id in self.pending_deletes or not LIFECYCLE.admits(row, self.state):
            return
        if users:
            raise self._in_use(users)
        self.record(events.TemplateDeleteBegun, at, command=command_id, force=force)

    def judge_delete(self, at: datetime, command_id: str, users: Sequence[str] = ()) -> None:
        """Decide the deletes that are begun. ``users``: sandboxes older in the log than the first of them, ``command_id``, and alive.

        Whoever counted them for another one has not read the log far enough, and decides nothing. A forced one cuts off a job at work.
        """
        if command_id != next(iter(self.pending_deletes), None):
            return
        if not LIFECYCLE.admits("judge_delete:used" if users else "judge_delete:unused", self.state):
            return
        if users:
            self.record(events.TemplateDeleteRefused, at, commands=tuple(self.pending_deletes), sandboxes=tuple(users[:20]))
        else:
            self.record(events.TemplateDeleteRequested, at, failed_job=self.active_job)

    def delete_refusal(self, command_id: str) -> Refused | None:
        """``template.in-use`` if that delete was judged so."""
        users = self.refused_deletes.get(command_id)
        return None if users is None else self._in_use(users)

    def finish_delete(self, at: datetime) -> None:
        if LIFECYCLE.admits("finish_delete", self.state):
            self.record(events.TemplateDeleted, at)

    def fail_delete(self, at: datetime, error: Why) -> None:
        """It could not be removed; another delete may try again."""
        if LIFECYCLE.admits("fail_delete", self.state):
            self.record(events.TemplateDeleteFailed, at, error=clip(error))

    def _settle(self, at: datetime, row: str, *, job_id: str | None, ready: int, failed: int, total: int, error: Why) -> None:
        status = LIFECYCLE.target(row, self.state)
        shown = None if status is TemplateState.READY else clip(error)
        self.record(events.TemplateSettled, at, job_id=job_id, status=status, ready=ready, failed=failed, total=total, error=shown)

    def _in_use(self, users: Sequence[str]) -> Refused:
        return Refused("template.in-use", f"{len(users)} sandboxes of template {self.id} live", details={"sandboxes": list(users[:20])})

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
