"""What can happen to a snapshot, and the records that its events are made of. Each event says what it does to the aggregate."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from domain.kernel.aggregate import CreatedEvent, Event, Record
from domain.kernel.text import ErrorText
from domain.nodes.orders import Sha256, Versions
from domain.sandboxes.spec import ArtifactRef, DriverName, Recipe
from domain.templates.snapshot_states import SnapshotState

if TYPE_CHECKING:
    from domain.templates.snapshot import Snapshot

Holds = tuple[Literal["disk", "memory"], ...]


DISKS = "disks"
"""The kind of a stored disk with its memory: for every node whose driver takes disks, whatever its own roots are."""


class StoredSnapshot(Record):
    """What everybody can fetch. ``moved_*``: what storing it added to what was there; ``kind``: which nodes can use it (``host.roots``)."""

    manifest: Sha256
    kind: str
    size_bytes: int
    chunks: int
    moved_chunks: int = 0
    moved_bytes: int = 0


class Export(Record):
    """That it is being stored. ``attempt`` counts all tries there ever were, ``tries`` those of this time."""

    attempt: int
    tries: int
    deadline: datetime


class RuntimeRef(Record):
    """A running sandbox is backed by this snapshot: where, and which generation of it. ``last_error``: why nobody can say so now."""

    node_id: str
    generation: int = 0
    since: datetime
    last_error: str | None = None


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
    driver: DriverName | None = None
    replicate: bool = False

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
        snapshot.needs = ""
        snapshot.refs = {}
        snapshot.rollback = None
        snapshot.last_error = None
        snapshot.error_code = ""
        snapshot.driver = self.driver
        snapshot.replicate = self.replicate
        snapshot.places = {self.node_id}
        snapshot.stored_as = None
        snapshot.exports = 0
        snapshot.export = None
        snapshot.export_error = None


class SnapshotReady(Event):
    TOPIC = "snapshot.ready"
    size_bytes: int
    holds: Holds = ("disk",)
    versions: Versions = Versions()
    needs: str = ""

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.READY
        snapshot.needs = self.needs
        snapshot.size_bytes = self.size_bytes
        snapshot.holds = self.holds
        snapshot.versions = self.versions


class SnapshotFailed(Event):
    TOPIC = "snapshot.failed"
    error: ErrorText | None = None
    code: str = ""
    """Why, if it was READY once."""

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.FAILED
        snapshot.last_error = self.error
        snapshot.error_code = self.code
        snapshot.export = None


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


class SnapshotRefsUnlisted(Event):
    """The node could not say what runs on it there: the refs stay, in doubt."""

    TOPIC = "snapshot.refs-unlisted"
    node_id: str
    error: ErrorText

    def apply(self, snapshot: Snapshot) -> None:
        _say_of_refs(snapshot, self.node_id, self.error)


class SnapshotRefsListed(Event):
    """The node could say again what runs on it there."""

    TOPIC = "snapshot.refs-listed"
    node_id: str

    def apply(self, snapshot: Snapshot) -> None:
        _say_of_refs(snapshot, self.node_id, None)


def _say_of_refs(snapshot: Snapshot, node_id: str, error: str | None) -> None:
    for sandbox_id, ref in snapshot.refs.items():
        if ref.node_id == node_id:
            snapshot.refs[sandbox_id] = ref.model_copy(update={"last_error": error})


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


class SnapshotPlaced(Event):
    """Another node is getting its bytes, for a sandbox that is to start there."""

    TOPIC = "snapshot.placed"
    node_id: str

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.places = snapshot.places | {self.node_id}


class SnapshotUnplaced(Event):
    """A node does not have its bytes any more."""

    TOPIC = "snapshot.unplaced"
    node_id: str
    reason: ErrorText = ""

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.places = snapshot.places - {self.node_id}


class SnapshotExportRequested(Event):
    """It shall be stored where every node can fetch it."""

    TOPIC = "snapshot.export-requested"
    attempt: int
    deadline: datetime

    def apply(self, snapshot: Snapshot) -> None:
        tries = 1 if snapshot.export is None else snapshot.export.tries + 1
        snapshot.exports = self.attempt
        snapshot.export = Export(attempt=self.attempt, tries=tries, deadline=self.deadline)
        snapshot.export_error = None


class SnapshotStored(Event):
    """Every node can fetch it: a manifest and all chunks that it names are there."""

    TOPIC = "snapshot.stored"
    stored: StoredSnapshot

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.stored_as = self.stored
        snapshot.export = None


class SnapshotExportFailed(Event):
    TOPIC = "snapshot.export-failed"
    attempt: int
    error: ErrorText | None = None
    code: str = ""

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.export = None
        snapshot.export_error = self.error or self.code


class SnapshotUnstored(Event):
    """What was stored of it is damaged or gone, and counts no more."""

    TOPIC = "snapshot.unstored"
    error: ErrorText | None = None

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.stored_as = None
        snapshot.export_error = self.error


class SnapshotDeleted(Event):
    """Nobody can use it any more; its bytes follow when ``refs`` is empty."""

    TOPIC = "snapshot.deleted"

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.DELETED


class SnapshotRemoved(Event):
    TOPIC = "snapshot.removed"

    def apply(self, snapshot: Snapshot) -> None:
        snapshot.state = SnapshotState.GONE
