"""The artifact: the root file system built from an image, shared by every template of that specification (reference/cubesandbox.md §3.6-7).

BUILDING         ``job_id`` builds it; whoever else wants it waits for that, so that one specification is built once.
READY            its bytes are in the object store, and ``sha256`` says which bytes.
FAILED           the build failed, or the bytes are lost; the next claim builds it again.
CLEANUP_PENDING  nobody owns it; its bytes are being removed everywhere. Never reused: a claim builds it again.
DELETED          nothing is left; a claim builds it again.

Owners are templates and snapshots, ``<project>/<id>``. ``generation`` counts the builds: the end of a clean-up that a newer build has
overtaken removes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.errors import Refused
from domain.kernel.ids import artifact_id as id_of
from domain.kernel.lifecycle import Lifecycle
from domain.kernel.text import ErrorText, Why, clip
from domain.sandboxes.spec import ArtifactRef
from domain.templates.fingerprint import ArtifactSpec

TTL: Final = timedelta(days=7)
"""How long an artifact without owners is kept for whoever asks for the same bytes again (reference/cubesandbox.md §3.7)."""


class ArtifactState(StrEnum):
    BUILDING = "BUILDING"
    READY = "READY"
    FAILED = "FAILED"
    CLEANUP_PENDING = "CLEANUP_PENDING"
    DELETED = "DELETED"


LIFECYCLE: Final = Lifecycle(
    "artifact",
    ArtifactState,
    """
                     BUILDING            READY            FAILED           CLEANUP_PENDING  DELETED
    claim            !artifact.building  =                BUILDING         BUILDING         BUILDING
    built            READY               =                =                =                =
    fail_build       FAILED              =                =                =                =
    expire_build     FAILED              =                =                =                =
    lost             =                   FAILED           =                =                =
    add_owner        BUILDING            READY            FAILED           !                !
    drop_owner       BUILDING            READY            FAILED           =                =
    request_cleanup  !artifact.building  CLEANUP_PENDING  CLEANUP_PENDING  =                =
    finish_cleanup   =                   =                =                DELETED          =
    placed           BUILDING            READY            FAILED           CLEANUP_PENDING  =
    unplaced         BUILDING            READY            FAILED           CLEANUP_PENDING  =
    """,
)


class ArtifactCreated(CreatedEvent):
    """Wanted for the first time, and being built."""

    TOPIC = "artifact.created"
    fingerprint: str
    spec: ArtifactSpec
    job_id: str
    project: str

    def apply(self, artifact: Artifact) -> None:
        artifact.fingerprint = self.fingerprint
        artifact.spec = self.spec
        artifact.owners = {}
        artifact.placements = {}
        artifact.generation = 0
        artifact.gc_deadline = None
        _build(artifact, self.job_id, self.project)


class ArtifactClaimed(Event):
    """Wanted again after it had failed or gone, and being built."""

    TOPIC = "artifact.claimed"
    job_id: str
    project: str

    def apply(self, artifact: Artifact) -> None:
        _build(artifact, self.job_id, self.project)


class ArtifactBuilt(Event):
    TOPIC = "artifact.built"
    job_id: str
    sha256: str
    size_bytes: int
    image_digest: str
    image_config: dict[str, Any] = {}
    node_id: str
    gc_deadline: datetime

    def apply(self, artifact: Artifact) -> None:
        artifact.state = ArtifactState.READY
        artifact.sha256 = self.sha256
        artifact.size_bytes = self.size_bytes
        artifact.image_digest = self.image_digest
        artifact.image_config = self.image_config
        artifact.node_id = self.node_id
        artifact.gc_deadline = self.gc_deadline
        artifact.last_error = None


class ArtifactFailed(Event):
    TOPIC = "artifact.failed"
    job_id: str | None = None
    error: ErrorText | None = None

    def apply(self, artifact: Artifact) -> None:
        artifact.state = ArtifactState.FAILED
        artifact.last_error = self.error


class ArtifactOwnerAdded(Event):
    TOPIC = "artifact.owner-added"
    owner: str

    def apply(self, artifact: Artifact) -> None:
        artifact.owners[self.owner] = self.timestamp


class ArtifactOwnerDropped(Event):
    """``gc_deadline``: until when it is kept without owners, if this was the last."""

    TOPIC = "artifact.owner-dropped"
    owner: str
    gc_deadline: datetime | None = None

    def apply(self, artifact: Artifact) -> None:
        artifact.owners.pop(self.owner, None)
        artifact.gc_deadline = self.gc_deadline or artifact.gc_deadline


class ArtifactCleanupRequested(Event):
    TOPIC = "artifact.cleanup-requested"

    def apply(self, artifact: Artifact) -> None:
        artifact.state = ArtifactState.CLEANUP_PENDING


class ArtifactDeleted(Event):
    TOPIC = "artifact.deleted"

    def apply(self, artifact: Artifact) -> None:
        artifact.state = ArtifactState.DELETED
        artifact.placements = {}
        artifact.sha256 = None
        artifact.size_bytes = 0


class ArtifactPlaced(Event):
    """A node has its bytes. Outlives replicas: it says where there is something to clean up."""

    TOPIC = "artifact.placed"
    node_id: str

    def apply(self, artifact: Artifact) -> None:
        artifact.placements[self.node_id] = self.timestamp


class ArtifactUnplaced(Event):
    TOPIC = "artifact.unplaced"
    node_id: str

    def apply(self, artifact: Artifact) -> None:
        artifact.placements.pop(self.node_id, None)


def _build(artifact: Artifact, job_id: str, project: str) -> None:
    artifact.state = ArtifactState.BUILDING
    artifact.job_id = job_id
    artifact.project = project
    artifact.generation += 1
    artifact.sha256 = None
    artifact.size_bytes = 0
    artifact.image_digest = None
    artifact.image_config = {}
    artifact.node_id = None
    artifact.last_error = None


class Artifact(Aggregate):
    TOPIC = "artifact"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: ArtifactState
    fingerprint: str
    spec: ArtifactSpec
    job_id: str
    """The job that builds it, or built it last, and that job's project."""
    project: str
    generation: int
    sha256: str | None
    size_bytes: int
    image_digest: str | None
    image_config: dict[str, Any]
    node_id: str | None
    owners: dict[str, datetime]
    placements: dict[str, datetime]
    gc_deadline: datetime | None
    last_error: str | None

    @classmethod
    def create(cls, id: str, at: datetime, fingerprint: str, spec: ArtifactSpec, job_id: str, project: str) -> Self:  # noqa: A002
        """The first claim. Raises ``artifact.fingerprint-mismatch`` when ``id`` is not the fingerprint's."""
        if id_of(fingerprint) != id:
            raise _mismatch(id, fingerprint)
        return cls.begin(ArtifactCreated, id, at, fingerprint=fingerprint, spec=spec, job_id=job_id, project=project)

    @property
    def ref(self) -> ArtifactRef | None:
        """What a node needs to fetch it; None unless it is READY."""
        if self.state is not ArtifactState.READY or self.sha256 is None:
            return None
        return ArtifactRef(artifact_id=self.id, sha256=self.sha256, size_bytes=self.size_bytes)

    def collectable(self, now: datetime) -> bool:
        """May the collector take it? It failed, is being cleaned up, or nobody has owned it until its deadline."""
        if self.owners:
            return False
        if self.state is ArtifactState.READY:
            return self.gc_deadline is not None and self.gc_deadline <= now
        return self.state in {ArtifactState.FAILED, ArtifactState.CLEANUP_PENDING}

    def claim(self, at: datetime, fingerprint: str, spec: ArtifactSpec, job_id: str, project: str) -> None:
        """Want it: READY is already so, else ``job_id`` builds it now. Raises ``artifact.building`` while another job does."""
        if fingerprint != self.fingerprint or spec != self.spec:
            raise _mismatch(self.id, fingerprint)
        if self.state is ArtifactState.BUILDING:
            if job_id == self.job_id:
                return
            raise Refused(
                "artifact.building",
                f"job {self.job_id} is building artifact {self.id}",
                retryable=True,
                details={"job": self.job_id, "project": self.project},
            )
        if LIFECYCLE.admits("claim", self.state):
            self.record(ArtifactClaimed, at, job_id=job_id, project=project)

    def built(
        self,
        at: datetime,
        job_id: str,
        sha256: str,
        size_bytes: int,
        image_digest: str,
        image_config: dict[str, Any],
        node_id: str,
    ) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("built", self.state):
            self.record(
                ArtifactBuilt,
                at,
                job_id=job_id,
                sha256=sha256,
                size_bytes=size_bytes,
                image_digest=image_digest,
                image_config=image_config,
                node_id=node_id,
                gc_deadline=at + TTL,
            )

    def fail_build(self, at: datetime, job_id: str, error: Why) -> None:
        if job_id == self.job_id and LIFECYCLE.admits("fail_build", self.state):
            self.record(ArtifactFailed, at, job_id=job_id, error=clip(error))

    def expire_build(self, at: datetime, job_id: str) -> None:
        """The job that was building it is over without a result."""
        if job_id == self.job_id and LIFECYCLE.admits("expire_build", self.state):
            self.record(ArtifactFailed, at, job_id=job_id, error="the build did not end in time")

    def lost(self, at: datetime, sha256: str | None = None) -> None:
        """Its bytes are not where they should be, or are others; reuse must not trust the record (reference/cubesandbox.md §3.6).

        ``sha256``: which bytes those were; the loss of an earlier build's is no news.
        """
        if sha256 in {None, self.sha256} and LIFECYCLE.admits("lost", self.state):
            self.record(ArtifactFailed, at, error="the stored bytes are missing or damaged")

    def add_owner(self, at: datetime, owner: str) -> None:
        """``owner`` (``<project>/<template or snapshot id>``) needs it."""
        if owner not in self.owners and LIFECYCLE.admits("add_owner", self.state):
            self.record(ArtifactOwnerAdded, at, owner=owner)

    def drop_owner(self, at: datetime, owner: str) -> None:
        if owner in self.owners and LIFECYCLE.admits("drop_owner", self.state):
            self.record(ArtifactOwnerDropped, at, owner=owner, gc_deadline=at + TTL if len(self.owners) == 1 else None)

    def request_cleanup(self, at: datetime) -> None:
        """Remove its bytes everywhere. Raises ``artifact.in-use`` while it has owners, ``artifact.building`` while it is built."""
        if not LIFECYCLE.admits("request_cleanup", self.state):
            return
        if self.owners:
            raise Refused("artifact.in-use", f"artifact {self.id} has owners", details={"owners": sorted(self.owners)[:20]})
        self.record(ArtifactCleanupRequested, at)

    def finish_cleanup(self, at: datetime, generation: int | None = None) -> None:
        """Its bytes are gone. ``generation``: the build that was cleaned up; a newer one is none of this clean-up's business."""
        if generation in {None, self.generation} and LIFECYCLE.admits("finish_cleanup", self.state):
            self.record(ArtifactDeleted, at)

    def placed(self, at: datetime, node_id: str) -> None:
        if node_id not in self.placements and LIFECYCLE.admits("placed", self.state):
            self.record(ArtifactPlaced, at, node_id=node_id)

    def unplaced(self, at: datetime, node_id: str) -> None:
        if node_id in self.placements and LIFECYCLE.admits("unplaced", self.state):
            self.record(ArtifactUnplaced, at, node_id=node_id)


def _mismatch(identifier: str, fingerprint: str) -> Refused:
    return Refused(
        "artifact.fingerprint-mismatch",
        f"artifact {identifier} belongs to another specification than {fingerprint}",
        details={"fingerprint": fingerprint},
    )
