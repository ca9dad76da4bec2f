"""What callers can ask of templates, artifacts and snapshots (contract.md). Wherever a template id is asked for, an alias will do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from domain.kernel.aggregate import Record
from domain.kernel.command import Command
from domain.kernel.ids import ArtifactId, JobId, Name, NodeId, SandboxId, SnapshotId, TemplateId
from domain.sandboxes.spec import Argv, DriverName, Env, Port, Ports
from domain.templates.compat import Policy

ImageText = Annotated[str, StringConstraints(min_length=1, max_length=512)]
TemplateOrAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Nodes = Annotated[tuple[NodeId, ...], Field(max_length=1024)]
Cpu = Annotated[float, Field(gt=0, le=256)]
MemoryMb = Annotated[int, Field(ge=16, le=1_048_576)]
DiskMb = Annotated[int, Field(ge=16, le=16_777_216)]
RegistryUser = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Sealed = Annotated[str, StringConstraints(max_length=16_384)]


class JobAccepted(Record):
    """``settled``: did the job end within ``wait_s``?"""

    template_id: TemplateId | None = None
    snapshot_id: SnapshotId | None = None
    job_id: JobId
    settled: bool = False


class TemplateCreate(Command):
    """Make a template from an image. ``nodes``: only there, all or nothing; absent: everywhere.

    Nodes that come later, or come back, get it too: ``max_replicas`` bounds on how many nodes it is, ``min_replicas`` is how many should
    have it before others get theirs, and of the rest the greater ``priority`` comes first.

    ``registry_secret`` is sealed to nodes that build (``bus/sealed.py``); anything else is refused as ``template.unsealed-secret``.
    """

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "create"
    EXAMPLE: ClassVar[dict[str, Any]] = {"image": "docker://docker.io/library/alpine:3.20", "alias": "base", "memory_mb": 256}
    RESULT: ClassVar[type[Record]] = JobAccepted

    image: ImageText
    alias: Name | None = None
    cpu: Cpu | None = None
    memory_mb: MemoryMb | None = None
    disk_mb: DiskMb = 1024
    env: Env = {}
    cmd: Argv | None = None
    ports: Ports = ()
    probe_port: Port | None = None
    driver: DriverName | None = None
    nodes: Nodes = ()
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 0
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = Field(default=None, validate_default=True)
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    egress_ca: bool = False
    registry_user: RegistryUser | None = None
    registry_secret: Annotated[Sealed | None, Field(exclude=True)] = None
    """Left out of what tells one body from another: the same secret sealed twice is two texts."""

    @field_validator("max_replicas")
    @classmethod
    def _at_least_the_minimum(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < info.data.get("min_replicas", 0):
            raise ValueError("at most is less than at least")
        return most


class TemplateCommit(Command):
    """Make a template from what a running sandbox is now. The sandbox goes on."""

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "commit"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": "sb-aaaaaaaaaaaaaaaaaaaa", "alias": "warm"}
    RESULT: ClassVar[type[Record]] = JobAccepted

    sandbox_id: SandboxId
    alias: Name | None = None


class TemplateRedo(Command):
    """Make replicas again: all, those on ``nodes``, the failed ones, or the failed ones on ``nodes``."""

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "redo"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base", "mode": "FAILED_ONLY"}
    RESULT: ClassVar[type[Record]] = JobAccepted

    template: TemplateOrAlias
    mode: Literal["ALL", "NODES", "FAILED_ONLY", "FAILED_NODES"]
    nodes: Nodes = Field(default=(), validate_default=True)

    @field_validator("nodes")
    @classmethod
    def _fit_the_mode(cls, nodes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "mode" in info.data and (info.data["mode"] in {"NODES", "FAILED_NODES"}) != bool(nodes):
            raise ValueError("nodes go with the modes NODES and FAILED_NODES, and only with them")
        return nodes


class BaselineAdopted(Record):
    """How many replicas were UNKNOWN and are OK now."""

    updated: int


class TemplateAdoptBaseline(Command):
    """Vouch that the template's UNKNOWN replicas fit what their nodes run now."""

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "adopt-baseline"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base"}
    RESULT: ClassVar[type[Record]] = BaselineAdopted

    template: TemplateOrAlias


class CompatPolicySet(Record):
    """The policy that the template has now."""

    template_id: TemplateId
    policy: Policy


class TemplateSetCompatPolicy(Command):
    """Say which versions of a node make the template's replicas stale: guest image and agent, or the guest image alone."""

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "set-compat-policy"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base", "policy": "GUEST_ONLY"}
    RESULT: ClassVar[type[Record]] = CompatPolicySet

    template: TemplateOrAlias
    policy: Policy


class TemplateDelete(Command):
    """Remove a template everywhere. ``force`` cuts off a job that is at work; a template in use is never removed."""

    NOUN: ClassVar[str] = "template"
    VERB: ClassVar[str] = "delete"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base"}

    template: TemplateOrAlias
    force: bool = False


class ArtifactsCollected(Record):
    """Which artifacts went (or would go), and how many are kept."""

    deleted: tuple[ArtifactId, ...]
    kept: int


class ArtifactCollect(Command):
    """Remove artifacts that failed, or that nobody has needed for a week. ``dry_run`` only says which."""

    NOUN: ClassVar[str] = "artifact"
    VERB: ClassVar[str] = "collect"
    EXAMPLE: ClassVar[dict[str, Any]] = {"dry_run": True}
    RESULT: ClassVar[type[Record]] = ArtifactsCollected

    dry_run: bool = False


class ArtifactLinked(Record):
    """Where its bytes are, and what to say there: ``Authorization: Bearer <token>``. The token holds for these bytes, until then."""

    artifact_id: ArtifactId
    url: str
    token: str
    expires_at: datetime
    sha256: str
    size_bytes: int


class ArtifactLink(Command):
    """Ask for the address of an artifact's bytes over HTTP, and a token for it. Only for who has a template or a snapshot of it."""

    NOUN: ClassVar[str] = "artifact"
    VERB: ClassVar[str] = "link"
    EXAMPLE: ClassVar[dict[str, Any]] = {"artifact_id": "rfs-000000000000000000000000", "ttl_s": 3600}
    RESULT: ClassVar[type[Record]] = ArtifactLinked

    artifact_id: ArtifactId
    ttl_s: Annotated[int, Field(ge=1, le=604_800)] = 3600


class JobCancelled(Record):
    """What the job is now: ``FAILED``, by this or before."""

    status: str


class JobCancel(Command):
    """End a job that makes a template ready: it fails as ``job.cancelled``, and what it had begun is cleaned up."""

    NOUN: ClassVar[str] = "job"
    VERB: ClassVar[str] = "cancel"
    EXAMPLE: ClassVar[dict[str, Any]] = {"job_id": "00000000-0000-5000-8000-000000000001"}
    RESULT: ClassVar[type[Record]] = JobCancelled

    job_id: JobId


class CompatRescanned(Record):
    """How many nodes' versions turned out to be other than what was known."""

    changed: int


class CompatRescan(Command):
    """Ask nodes again what they run. One of ``nodes`` and ``all``."""

    NOUN: ClassVar[str] = "compat"
    VERB: ClassVar[str] = "rescan"
    EXAMPLE: ClassVar[dict[str, Any]] = {"all": True}
    RESULT: ClassVar[type[Record]] = CompatRescanned

    nodes: Nodes = ()
    all: bool = Field(default=False, validate_default=True)

    @field_validator("all")
    @classmethod
    def _or_nodes(cls, everything: bool, info: ValidationInfo) -> bool:
        if "nodes" in info.data and everything == bool(info.data["nodes"]):
            raise ValueError("give either nodes or all: true")
        return everything


class SnapshotCreate(Command):
    """Take a snapshot of a running or paused sandbox, which goes on."""

    NOUN: ClassVar[str] = "snapshot"
    VERB: ClassVar[str] = "create"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": "sb-aaaaaaaaaaaaaaaaaaaa", "name": "before the upgrade"}
    RESULT: ClassVar[type[Record]] = JobAccepted

    sandbox_id: SandboxId
    name: Label = ""
    replicate: bool = False
    """Store it at once where every node can fetch it; the job does not wait for that."""


class SnapshotStoring(Record):
    """``settled``: is it stored, or has that failed? ``status``: ``storing``, ``stored`` or ``failed``."""

    snapshot_id: SnapshotId
    status: str
    settled: bool = False


class SnapshotExport(Command):
    """Store a snapshot where every node can fetch it, so that it outlives its node and sandboxes can start from it elsewhere."""

    NOUN: ClassVar[str] = "snapshot"
    VERB: ClassVar[str] = "export"
    EXAMPLE: ClassVar[dict[str, Any]] = {"snapshot_id": "snap-000000000000000000000000"}
    RESULT: ClassVar[type[Record]] = SnapshotStoring

    snapshot_id: SnapshotId


class SnapshotDelete(Command):
    """Remove a snapshot. Sandboxes that run on it keep it until they end; nobody else sees it from now on."""

    NOUN: ClassVar[str] = "snapshot"
    VERB: ClassVar[str] = "delete"
    EXAMPLE: ClassVar[dict[str, Any]] = {"snapshot_id": "snap-000000000000000000000000"}

    snapshot_id: SnapshotId
