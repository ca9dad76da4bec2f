"""The snapshot's decisions. States and rules stand in ``snapshot_states.py``, events in ``snapshot_events.py``.

Methods take the time first, record events, record none because the thing is already so, or raise ``Refused``.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate
from domain.kernel.errors import Refused
from domain.kernel.text import Why, clip
from domain.nodes.orders import Failure, SnapshotExported, Versions
from domain.sandboxes.spec import ArtifactRef, DriverName, Recipe
from domain.templates import snapshot_events as events
from domain.templates.snapshot_events import Export, Holds, RuntimeRef, StoredSnapshot
from domain.templates.snapshot_states import LIFECYCLE, SnapshotState

__all__ = ["LIFECYCLE", "RuntimeRef", "Snapshot", "SnapshotState", "StoredSnapshot"]

MAX_EXPORTS: Final = 3
"""How often an export is tried by itself when a node's trouble with it may pass."""
NODE_EVICTED, LOST, UNSTORED = "snapshot.node-evicted", "snapshot.lost", "snapshot.bytes-lost"
"""Why a snapshot has FAILED that once was READY: its node is gone for good, its node does not have it, what was stored is damaged."""


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
    needs: str
    """The flag of a driver that can go on from its memory; empty: any can, or nobody knows."""
    refs: dict[str, RuntimeRef]
    rollback: int | None
    """The generation that its sandbox gets by the rollback to it that is under way."""
    last_error: str | None
    error_code: str
    driver: DriverName | None
    """What its sandbox ran on; what is created from it runs on the same."""
    replicate: bool
    places: set[str]
    stored_as: StoredSnapshot | None
    exports: int
    export: Export | None
    export_error: str | None

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
        driver: DriverName | None = None,
        replicate: bool = False,
    ) -> Self:
        return cls.begin(
            events.SnapshotCreated,
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
            driver=driver,
            replicate=replicate,
        )

    @property
    def status(self) -> str:
        """The contract's word."""
        return self.state.value

    @property
    def removable(self) -> bool:
        """A tombstone that no sandbox runs on, or is being put back to: its bytes may go."""
        return self.state is SnapshotState.DELETED and not self.refs and self.rollback is None

    @property
    def erased(self) -> bool:
        """A tombstone that no node has any bytes of."""
        return self.removable and not self.places

    def require_usable(self, node: str | None = None) -> None:
        """Raises ``snapshot.not-found`` for a tombstone, ``snapshot.illegal-state`` for one that is not there yet, or failed.

        ``snapshot.lost`` for one that was there and is not any more (``details.cause`` says why), ``snapshot.not-on-node`` when ``node`` is
        wished, and it is on other ones and not stored.
        """
        if self.state is SnapshotState.FAILED and self.error_code:
            raise Refused("snapshot.lost", f"snapshot {self.id} is lost: {self.last_error}", details={"cause": self.error_code})
        LIFECYCLE.admits("require_usable", self.state)
        if node is not None and node not in self.places and self.stored_as is None:
            nodes = sorted(self.places)
            raise Refused(
                "snapshot.not-on-node",
                f"snapshot {self.id} lives on {', '.join(nodes)}, and is not stored",
                details={"node": self.node_id, "nodes": nodes},
            )

    def ready(
        self,
        at: datetime,
        job_id: str,
        size_bytes: int,
        holds: Holds = ("disk",),
        versions: Versions | None = None,
        needs: str = "",
        export_until: datetime | None = None,
    ) -> None:
        """It is taken. ``export_until``: the deadline for storing it, if it is to be stored at once."""
        if job_id == self.job_id and LIFECYCLE.admits("ready", self.state):
            self.record(events.SnapshotReady, at, size_bytes=size_bytes, holds=holds, versions=versions or Versions(), needs=needs)
            if self.replicate and export_until is not None:
                self.record(events.SnapshotExportRequested, at, attempt=1, deadline=export_until)

    def fail(self, at: datetime, job_id: str, error: Why) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("fail", self.state):
            self.record(events.SnapshotFailed, at, error=clip(error))

    def attach(self, at: datetime, sandbox_id: str, node_id: str, generation: int = 0) -> None:
        """The sandbox runs on it. Repeats, and what belongs to an older generation of the sandbox, are no news."""
        known = self.refs.get(sandbox_id)
        if known is not None and (generation < known.generation or (generation, node_id) == (known.generation, known.node_id)):
            return
        if LIFECYCLE.admits("attach", self.state):
            self.record(events.SnapshotAttached, at, sandbox_id=sandbox_id, node_id=node_id, generation=generation)

    def detach(self, at: datetime, sandbox_id: str, reason: str = "") -> None:
        """The sandbox is gone, or runs on something else now."""
        if sandbox_id in self.refs and LIFECYCLE.admits("detach", self.state):
            self.record(events.SnapshotDetached, at, sandbox_id=sandbox_id, reason=clip(reason) or "")

    def refs_unlisted(self, at: datetime, node_id: str, error: Why) -> None:
        """The node could not list what runs there: nothing is released, and who looks is told (reference/cubesandbox.md §5.5)."""
        why = clip(error) or "the node could not list its sandboxes"
        doubted = any(ref.node_id == node_id and ref.last_error != why for ref in self.refs.values())
        if doubted and LIFECYCLE.admits("refs_unlisted", self.state):
            self.record(events.SnapshotRefsUnlisted, at, node_id=node_id, error=why)

    def refs_listed(self, at: datetime, node_id: str) -> None:
        """The node listed what runs there; what is missing in that ends as a sandbox, and takes its ref along."""
        doubted = any(ref.node_id == node_id and ref.last_error is not None for ref in self.refs.values())
        if doubted and LIFECYCLE.admits("refs_listed", self.state):
            self.record(events.SnapshotRefsListed, at, node_id=node_id)

    def begin_rollback(self, at: datetime, generation: int) -> None:
        """Its sandbox shall go back to it, as ``generation``. Raises ``snapshot.not-found`` for a tombstone."""
        if generation != self.rollback and LIFECYCLE.admits("begin_rollback", self.state):
            self.record(events.SnapshotRollbackBegun, at, generation=generation)

    def end_rollback(self, at: datetime, generation: int | None, on_it: bool = False) -> None:
        """That rollback is over. ``on_it``: the sandbox runs on it now, also if it was deleted meanwhile."""
        row = "end_rollback:on_it" if on_it else "end_rollback:as_was"
        if generation is None or generation != self.rollback or not LIFECYCLE.admits(row, self.state):
            return
        if on_it:
            self.record(events.SnapshotAttached, at, sandbox_id=self.sandbox_id, node_id=self.node_id, generation=generation)
        self.record(events.SnapshotRollbackEnded, at, generation=generation)

    def request_delete(self, at: datetime) -> None:
        """Hide it and refuse new use. Sandboxes that run on it keep it until they end."""
        if LIFECYCLE.admits("request_delete", self.state):
            self.record(events.SnapshotDeleted, at)

    def finish_delete(self, at: datetime) -> None:
        """Its bytes are gone. Raises ``snapshot.in-use`` while a sandbox runs on it."""
        if LIFECYCLE.admits("finish_delete", self.state):
            if self.refs or self.rollback is not None:
                raise Refused("snapshot.in-use", f"sandboxes run on snapshot {self.id}", details={"sandboxes": sorted(self.refs)[:20]})
            self.record(events.SnapshotRemoved, at)

    def lost(self, at: datetime, error: Why = None, node_id: str | None = None, code: str = LOST) -> None:
        """The node says that it does not have it any more (a failed listing is not such a word), or is gone for good.

        Without ``node_id`` its first node. It is lost only if it is nowhere else.
        """
        node, why = node_id or self.node_id, clip(error) or "the node does not have it any more"
        if node not in self.places:
            return
        if self.stored_as is not None or self.places != {node}:
            if LIFECYCLE.admits("lost:elsewhere", self.state):
                self.record(events.SnapshotUnplaced, at, node_id=node, reason=why)
        elif LIFECYCLE.admits("lost", self.state):
            self.record(events.SnapshotFailed, at, error=why, code=code)

    # ---------------------------------------------------------------------------------------------------------- places

    def place(self, at: datetime, node_id: str) -> None:
        """A sandbox is to start from it there. Raises ``snapshot.not-on-node`` unless it can be fetched."""
        self.require_usable(node_id)
        if node_id not in self.places and LIFECYCLE.admits("place", self.state):
            self.record(events.SnapshotPlaced, at, node_id=node_id)

    def unplace(self, at: datetime, node_id: str) -> None:
        """The tombstone's bytes are gone there."""
        if node_id in self.places and LIFECYCLE.admits("unplace", self.state):
            self.record(events.SnapshotUnplaced, at, node_id=node_id)

    def request_export(self, at: datetime, deadline: datetime) -> None:
        """Store it, unless it is stored or being stored."""
        if not LIFECYCLE.admits("request_export", self.state) or self.stored_as is not None or self.export is not None:
            return
        self.record(events.SnapshotExportRequested, at, attempt=self.exports + 1, deadline=deadline)

    def stored(self, at: datetime, attempt: int, exported: SnapshotExported) -> None:
        """All of it is there. An older try's word is as good: the same content has the same manifest."""
        if self.export is not None and attempt <= self.export.attempt and LIFECYCLE.admits("stored", self.state):
            self.record(events.SnapshotStored, at, stored=StoredSnapshot.model_validate(exported.model_dump()))

    def export_failed(self, at: datetime, attempt: int, failure: Failure) -> None:
        """That try did not work. It is tried again if that can help and there is time."""
        export = self.export
        if export is None or attempt != export.attempt or not LIFECYCLE.admits("export_failed", self.state):
            return
        if failure.retryable and export.tries < MAX_EXPORTS and at < export.deadline:
            self.record(events.SnapshotExportRequested, at, attempt=attempt + 1, deadline=export.deadline)
        else:
            self.record(events.SnapshotExportFailed, at, attempt=attempt, error=clip(failure), code=failure.code)

    def unstored(self, at: datetime, manifest: str, error: Why) -> None:
        """What is stored of it is not what it was. It is lost if no node has it."""
        if self.stored_as is None or self.stored_as.manifest != manifest:
            return
        if self.places:
            if LIFECYCLE.admits("unstored", self.state):
                self.record(events.SnapshotUnstored, at, error=clip(error))
        elif LIFECYCLE.admits("unstored:last", self.state):
            self.record(events.SnapshotUnstored, at, error=clip(error))
            self.record(events.SnapshotFailed, at, error=clip(error), code=UNSTORED)
