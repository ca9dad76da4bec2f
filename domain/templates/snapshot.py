"""The snapshot: memory and disk of a sandbox at one moment, to start from or to go back to (reference/cubesandbox.md §5).

CREATING  the node takes it.
READY     it can be used.
FAILED    it could not be taken, or the node lost it. Listed, and deletable.
DELETED   a tombstone: hidden, refuses new use, and goes for good when the last sandbox that runs on it is gone (§5.3, the later rule).
GONE      nothing is left of it.

``refs`` are the runtime refs: which sandboxes run on it now. A sandbox is on at most one snapshot; whoever moves it detaches it here and
attaches it there.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Literal, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event, Record
from domain.kernel.errors import Refused
from domain.kernel.lifecycle import Lifecycle
from domain.kernel.text import ErrorText, Why, clip
from domain.nodes.orders import Versions
from domain.sandboxes.spec import ArtifactRef, Recipe

Holds = tuple[Literal["disk", "memory"], ...]


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
    begin_rollback  !         READY    !        !snapshot.not-found  !snapshot.not-found
    end_rollback:on_it    =   READY    FAILED   DELETED              =
    end_rollback:as_was   =   READY    FAILED   DELETED              =
    request_delete  !         DELETED  DELETED  =                    !snapshot.not-found
    finish_delete   =         =        =        GONE                 =
    lost            =         FAILED   =        =                    =
    """,
)


class RuntimeRef(Record):
    """A running sandbox is backed by this snapshot: where, and which generation of it."""

    node_id: str
    generation: int = 0
    since: datetime


class SnapshotCreated(CreatedEvent):
    TOPIC = "snapshot.created"
    name: str = ""
    sandbox_id: str
    node_id: str
    template_id: str
    artifact: ArtifactRef
    recipe: Recipe
    job_id: str
    ephemeral: bool = False

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.CREATING
        snapshot.name = self.name
        snapshot.sandbox_id = self.sandbox_id
        snapshot.node_id = self.node_id
        snapshot.template_id = self.template_id
        snapshot.artifact = self.artifact
        snapshot.recipe = self.recipe
        snapshot.job_id = self.job_id
        snapshot.ephemeral = self.ephemeral
        snapshot.size_bytes = 0
        snapshot.holds = ()
        snapshot.versions = Versions()
        snapshot.refs = {}
        snapshot.rollback = None
        snapshot.last_error = None


class SnapshotReady(Event):
    TOPIC = "snapshot.ready"
    size_bytes: int
    holds: Holds = ("disk",)
    versions: Versions = Versions()

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.READY
        snapshot.size_bytes = self.size_bytes
        snapshot.holds = self.holds
        snapshot.versions = self.versions


class SnapshotFailed(Event):
    TOPIC = "snapshot.failed"
    error: ErrorText | None = None

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.FAILED
        snapshot.last_error = self.error


class SnapshotAttached(Event):
    TOPIC = "snapshot.attached"
    sandbox_id: str
    node_id: str
    generation: int = 0

    def apply(self, snapshot: Snapshot) -> None:
        ref = RuntimeRef(node_id=self.node_id, generation=self.generation, since=self.timestamp)
        snapshot.refs[self.sandbox_id] = ref


class SnapshotDetached(Event):
    TOPIC = "snapshot.detached"
    sandbox_id: str
    reason: ErrorText = ""

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.refs.pop(self.sandbox_id, None)


class SnapshotRollbackBegun(Event):
    """Its sandbox is being put back to it, as ``generation``: until that has ended its bytes stay."""

    TOPIC = "snapshot.rollback-begun"
    generation: int

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.rollback = self.generation


class SnapshotRollbackEnded(Event):
    TOPIC = "snapshot.rollback-ended"
    generation: int

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.rollback = None


class SnapshotDeleted(Event):
    """Nobody can use it any more; its bytes follow when ``refs`` is empty."""

    TOPIC = "snapshot.deleted"

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.DELETED


class SnapshotRemoved(Event):
    TOPIC = "snapshot.removed"

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.GONE


class Snapshot(Aggregate):
    TOPIC = "snapshot"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: SnapshotState
    name: str
    sandbox_id: str
    """Of which sandbox; only that one can be rolled back to it."""
    node_id: str
    template_id: str
    artifact: ArtifactRef
    recipe: Recipe
    job_id: str
    ephemeral: bool
    """Made for clones only: it goes when the last of them is gone."""
    size_bytes: int
    holds: Holds
    versions: Versions
    refs: dict[str, RuntimeRef]
    rollback: int | None
    """The generation that its sandbox gets by the rollback to it that is under way."""
    last_error: str | None

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        name: str,
        sandbox_id: str,
        node_id: str,
        template_id: str,
        artifact: ArtifactRef,
        recipe: Recipe,
        job_id: str,
        ephemeral: bool = False,
    ) -> Self:
        return cls.begin(
            SnapshotCreated,
            id,
            at,
            name=name,
            sandbox_id=sandbox_id,
            node_id=node_id,
            template_id=template_id,
            artifact=artifact,
            recipe=recipe,
            job_id=job_id,
            ephemeral=ephemeral,
        )

    @property
    def status(self) -> str:
        """The contract's word."""
        return self.state.value

    @property
    def removable(self) -> bool:
        """A tombstone that no sandbox runs on, or is being put back to: its bytes may go."""
        return self.state is SnapshotState.DELETED and not self.refs and self.rollback is None

    def require_usable(self, node: str | None = None) -> None:
        """Raises ``snapshot.not-found`` for a tombstone, ``snapshot.illegal-state`` for one that is not there yet, or failed.

        And ``snapshot.not-on-node`` when ``node`` is wished, and it is on another one.
        """
        LIFECYCLE.admits("require_usable", self.state)
        if node not in {None, self.node_id}:
            raise Refused("snapshot.not-on-node", f"snapshot {self.id} lives on node {self.node_id}", details={"node": self.node_id})

    def ready(self, at: datetime, job_id: str, size_bytes: int, holds: Holds = ("disk",), versions: Versions | None = None) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("ready", self.state):
            self.record(SnapshotReady, at, size_bytes=size_bytes, holds=holds, versions=versions or Versions())

    def fail(self, at: datetime, job_id: str, error: Why) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("fail", self.state):
            self.record(SnapshotFailed, at, error=clip(error))

    def attach(self, at: datetime, sandbox_id: str, node_id: str, generation: int = 0) -> None:
        """The sandbox runs on it. Repeats, and what belongs to an older generation of the sandbox, are no news."""
        known = self.refs.get(sandbox_id)
        if known is not None and (generation < known.generation or (generation, node_id) == (known.generation, known.node_id)):
            return
        if LIFECYCLE.admits("attach", self.state):
            self.record(SnapshotAttached, at, sandbox_id=sandbox_id, node_id=node_id, generation=generation)

    def detach(self, at: datetime, sandbox_id: str, reason: str = "") -> None:
        """The sandbox is gone, or runs on something else now."""
        if sandbox_id in self.refs and LIFECYCLE.admits("detach", self.state):
            self.record(SnapshotDetached, at, sandbox_id=sandbox_id, reason=clip(reason) or "")

    def begin_rollback(self, at: datetime, generation: int) -> None:
        """Its sandbox shall go back to it, as ``generation``. Raises ``snapshot.not-found`` for a tombstone."""
        if generation != self.rollback and LIFECYCLE.admits("begin_rollback", self.state):
            self.record(SnapshotRollbackBegun, at, generation=generation)

    def end_rollback(self, at: datetime, generation: int | None, on_it: bool = False) -> None:
        """That rollback is over. ``on_it``: the sandbox runs on it now, also if it was deleted meanwhile."""
        row = "end_rollback:on_it" if on_it else "end_rollback:as_was"
        if generation is None or generation != self.rollback or not LIFECYCLE.admits(row, self.state):
            return
        if on_it:
            self.record(SnapshotAttached, at, sandbox_id=self.sandbox_id, node_id=self.node_id, generation=generation)
        self.record(SnapshotRollbackEnded, at, generation=generation)

    def request_delete(self, at: datetime) -> None:
        """Hide it and refuse new use. Sandboxes that run on it keep it until they end."""
        if LIFECYCLE.admits("request_delete", self.state):
            self.record(SnapshotDeleted, at)

    def finish_delete(self, at: datetime) -> None:
        """Its bytes are gone. Raises ``snapshot.in-use`` while a sandbox runs on it."""
        if LIFECYCLE.admits("finish_delete", self.state):
            if self.refs or self.rollback is not None:
                raise Refused("snapshot.in-use", f"sandboxes run on snapshot {self.id}", details={"sandboxes": sorted(self.refs)[:20]})
            self.record(SnapshotRemoved, at)

    def lost(self, at: datetime, error: Why = None) -> None:
        """The node says that it does not have it any more (a failed listing is not such a word)."""
        if LIFECYCLE.admits("lost", self.state):
            self.record(SnapshotFailed, at, error=clip(error) or "the node does not have it any more")
