"""Orders and reports: what the control plane tells a node on its lane, and what the node answers.

An order is delivered at least once and in order; the node does what it says at most once per ``id``. A report is a claim: an aggregate
accepts it, ignores it as stale (older ``attempt`` or ``generation``), or refuses it (design.md §5).
Bodies of each verb are the records below, in ``BODIES``; what a successful report says is in ``RESULTS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused
from domain.kernel.ids import ArtifactId, Name, SandboxId, SnapshotId, TemplateId, VolumeId
from domain.nodes.sweeps import Holdings, NodeList, NodeSweep, Swept

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Verb(StrEnum):
    """What a node can be told to do."""

    IMAGE_RESOLVE = "image-resolve"
    ARTIFACT_BUILD = "artifact-build"
    ARTIFACT_REMOVE = "artifact-remove"
    REPLICA_DISTRIBUTE = "replica-distribute"
    REPLICA_PREPARE = "replica-prepare"
    REPLICA_REMOVE = "replica-remove"
    SANDBOX_PROVISION = "sandbox-provision"
    SANDBOX_PAUSE = "sandbox-pause"
    SANDBOX_RESUME = "sandbox-resume"
    SANDBOX_LIMITS = "sandbox-limits"
    SANDBOX_STOP = "sandbox-stop"
    SANDBOX_DESTROY = "sandbox-destroy"
    SANDBOX_EXEC = "sandbox-exec"
    SANDBOX_SNAPSHOT = "sandbox-snapshot"
    SANDBOX_ROLLBACK = "sandbox-rollback"
    SANDBOX_COMMIT = "sandbox-commit"
    SANDBOX_RESTART = "sandbox-restart"
    SNAPSHOT_REMOVE = "snapshot-remove"
    SNAPSHOT_EXPORT = "snapshot-export"
    DISK_PROVISION = "disk-provision"
    DISK_GROW = "disk-grow"
    DISK_SNAPSHOT = "disk-snapshot"
    DISK_SNAPSHOT_REMOVE = "disk-snapshot-remove"
    DISK_REMOVE = "disk-remove"
    NODE_INSPECT = "node-inspect"
    NODE_LIST = "node-list"
    NODE_SWEEP = "node-sweep"
    ORDER_CANCEL = "order-cancel"


class Order(Record):
    """One command for one node. ``key`` orders: equal keys strictly one after the other, different keys in parallel.

    ``process`` and ``process_id`` name the aggregate that waits for the outcome (``job``, ``provisioning``, ``sandbox``, ``snapshot``);
    ``attempt`` tells this try from earlier ones.
    """

    id: str
    verb: Verb
    project: str
    key: str
    process: str
    process_id: str
    attempt: int = 1
    at: datetime
    deadline: datetime | None = None
    trace: str | None = None
    cause: str | None = None
    """The commit that made the control plane give it."""
    body: dict[str, Any]


class ReportKind(StrEnum):
    """What a report says about its order. ``OBSERVED`` reports belong to no order: the node noticed something by itself."""

    PROGRESS = "progress"
    STEP = "step"
    DONE = "done"
    FAILED = "failed"
    OBSERVED = "observed"


class Failure(Record):
    """Why something did not work. ``retryable``: the same order may succeed later without anybody changing it."""

    code: str
    message: Annotated[str, StringConstraints(max_length=4096)]
    retryable: bool = False
    details: dict[str, Any] = {}

    def refusal(self, details: Mapping[str, Any] | None = None) -> Refused:
        """The same as an answer to whoever waited; ``details`` are added. ``settled``: how the command ended, under its id for ever."""
        return Refused(self.code, self.message, retryable=self.retryable, details={**self.details, **(details or {}), "settled": True})


class Report(Record):
    """What a node says. ``id`` is ``<order id>:<kind>[:<n>]``: the bus stores it once however often it is sent."""

    id: str
    order: str | None = None
    node: str
    verb: str
    kind: ReportKind
    project: str
    process: str = ""
    process_id: str = ""
    attempt: int = 1
    at: datetime
    trace: str | None = None
    cause: str | None = None
    """The order's."""
    body: dict[str, Any] = {}
    error: Failure | None = None


# ---------------------------------------------------------------------------------------------------------- templates


class ImageResolve(Record):
    """Find out which bytes an image reference means now. Nothing is kept on the node.

    ``egress_ca``: say also which CA the node would bake in; one that has none fails here, before anything is pulled.
    """

    image: str
    egress_ca: bool = False
    registry_user: str | None = None
    registry_secret: str | None = None


class ImageResolved(Record):
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    size_bytes: int
    layers: int
    config: dict[str, Any]
    """The image configuration's ``config`` object: Entrypoint, Cmd, Env, WorkingDir, User, ExposedPorts."""
    egress_ca: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the DER form of the node's egress CA, if that was asked for."""


class ArtifactBuild(Record):
    """Pull, unpack, make the ext4 file and put it into the object store under its artifact id.

    ``committed``: there is no image; the node has the file already, by a ``sandbox-commit``, and only stores it.

    ``egress_ca``: bake the node's egress CA in, which must be the one with ``egress_ca_sha256``: the artifact id follows from that.
    """

    artifact_id: ArtifactId
    image: str
    digest: str
    disk_mb: int
    committed: bool = False
    egress_ca: bool = False
    egress_ca_sha256: str = ""
    registry_user: str | None = None
    registry_secret: str | None = None


class ArtifactBuilt(Record):
    sha256: Sha256
    size_bytes: int
    image_config: dict[str, Any] = {}


class BuildProgress(Record):
    """``PROGRESS`` of a build or of a replica's preparation: which job phase (reference/cubesandbox.md §3.3), and how far the pull is."""

    phase: str
    fraction: Annotated[float, Field(ge=0, le=1)] = 0
    bytes: int = 0
    total_bytes: int = 0
    layers: int = 0
    total_layers: int = 0
    bytes_per_s: int = 0


class ArtifactRemove(Record):
    artifact_id: ArtifactId


class ReplicaDistribute(Record):
    """Have the artifact's verified bytes on this node."""

    template_id: TemplateId
    artifact: dict[str, Any]
    """An ``ArtifactRef``."""


class ReplicaPrepare(Record):
    """Make the template startable here, and prove it by a boot of its own."""

    template_id: TemplateId
    artifact: dict[str, Any]
    recipe: dict[str, Any]
    driver: str | None = None


class Versions(Record):
    """What a node runs, as far as replicas are bound to it. An unknown version is the empty string (reference/cubesandbox.md §6)."""

    guest_image: str = ""
    agent: str = ""
    kernel: str = ""


class ReplicaPrepared(Record):
    versions: Versions
    driver: str


class ReplicaRemove(Record):
    """Forget a template (or snapshot) on this node. The artifact goes too when ``artifact_id`` is given and nothing else uses it."""

    template_id: TemplateId
    artifact_id: ArtifactId | None = None


# ---------------------------------------------------------------------------------------------------------- sandboxes


class DiskGrant(Record):
    """A disk that a sandbox may mount, and nobody else while its ``epoch`` is the newest that the node has heard of."""

    disk: Name
    volume_id: VolumeId
    epoch: Annotated[int, Field(ge=1)]
    mount_path: str
    read_only: bool = False


class SandboxProvision(Record):
    """Bring a sandbox up, step by step, or undo every step."""

    sandbox_id: SandboxId
    generation: int = 0
    spec: dict[str, Any]
    """A ``SandboxSpec``."""
    issuer: Annotated[str, Field(max_length=512)] = ""
    """Where the sandbox's tokens come from; empty: it gets none."""
    disks: tuple[DiskGrant, ...] = ()


class StepState(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"


class StepReport(Record):
    """``STEP`` of a provisioning: what happened to one step, in the order in which it happened."""

    step: str
    state: StepState
    at: datetime
    output: dict[str, Any] = {}
    error: Failure | None = None


class Steps(Record):
    """The body of a ``STEP`` report, and part of a final one: one or more steps, oldest first. ``first`` numbers the first of them."""

    first: int
    steps: tuple[StepReport, ...]


class PortStatus(Record):
    """A declared port. ``closed``: it listened, and does not any more. ``bound``: the port that it is served on instead."""

    port: int
    address: str = ""
    status: Literal["declared", "listening", "closed"] = "declared"
    bound: int | None = None

    def after(self, known: PortStatus | None) -> PortStatus:
        """The same, by somebody who knows more of its past: what has listened once is closed when it does not."""
        listened = known is not None and known.status != "declared"
        return self.model_copy(update={"status": "closed"}) if self.status == "declared" and listened else self


class SandboxRunning(Record):
    """The final report of a provisioning, a resume or a rollback."""

    driver: str
    address: str = ""
    ports: tuple[PortStatus, ...] = ()
    generation: int = 0
    first: int = 0
    steps: tuple[StepReport, ...] = ()


class ProvisionFailed(Record):
    """The body of a ``FAILED`` provisioning or destruction. ``uncompensated`` lists steps whose undo did not succeed: something is left.

    ``undo``: 0 when the order itself ended so; n when the node has tried n times since then to undo what was left.
    """

    first: int = 0
    steps: tuple[StepReport, ...] = ()
    failed_step: str = ""
    uncompensated: tuple[str, ...] = ()
    undo: Annotated[int, Field(ge=0)] = 0


class SandboxTarget(Record):
    """Pause, resume, stop or destroy. ``grace_s``: how long a stop waits between SIGTERM and SIGKILL."""

    sandbox_id: SandboxId
    generation: int = 0
    grace_s: Annotated[float, Field(ge=0, le=600)] = 10


class SandboxLimits(Record):
    """Keep it to these from now on, also when it starts anew after a rollback."""

    sandbox_id: SandboxId
    generation: int = 0
    cpu: float
    memory_mb: int
    pids: int


class SandboxStopped(Record):
    exit_code: int | None = None
    exited_at: datetime | None = None


class SandboxExec(Record):
    sandbox_id: SandboxId
    cmd: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    stdin: str = ""
    """Base64."""
    timeout_s: float = 60


class SandboxExecuted(Record):
    """``stdout`` and ``stderr`` are base64 of at most 1 MiB each; ``truncated`` says that there was more."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    timed_out: bool = False
    duration_ms: float = 0


class SandboxSnapshot(Record):
    sandbox_id: SandboxId
    snapshot_id: SnapshotId
    generation: int = 0


class SnapshotTaken(Record):
    """``holds``: what the snapshot contains; a driver that cannot keep memory says so (reference/runtimes.md §11).

    ``needs``: the flag of a driver that can go on from that memory; empty: any can, or nobody knows.
    """

    size_bytes: int
    holds: tuple[Literal["disk", "memory"], ...] = ("disk",)
    versions: Versions = Versions()
    needs: Annotated[str, StringConstraints(max_length=64)] = ""


class SandboxRollback(Record):
    """``generation`` must be greater than what the node has; otherwise the order is stale and refused.

    ``snapshot_manifest``: what is stored of the snapshot, for a node that does not have it any more.
    """

    sandbox_id: SandboxId
    snapshot_id: SnapshotId
    generation: int
    snapshot_manifest: Sha256 | None = None


class SandboxRestart(Record):
    """Start the main process again in the root that is there. ``generation`` must be greater than what the node has."""

    sandbox_id: SandboxId
    generation: int


class SandboxCommit(Record):
    """Make an ext4 file of the sandbox's disk as it is at one moment, and keep it on the node. ``disk_mb``: the template's."""

    sandbox_id: SandboxId
    generation: int = 0
    disk_mb: int


class SandboxCommitted(Record):
    """``digest``: of all that is in the file system; the artifact's id follows from it. ``sha256`` and size are the file's."""

    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    sha256: Sha256
    size_bytes: int


class SnapshotRemove(Record):
    snapshot_id: SnapshotId


class SnapshotExport(Record):
    """Store the snapshot's content where every node can fetch it; what is there already is not sent again."""

    snapshot_id: SnapshotId


class SnapshotExported(Record):
    """``kind``: which nodes can use it; ``size_bytes`` of content in ``chunks``, of which ``moved_*`` were not there before."""

    manifest: Sha256
    kind: str
    size_bytes: int
    chunks: int
    moved_chunks: int = 0
    moved_bytes: int = 0


class DiskProvision(Record):
    """Make a disk. ``filesystem`` None: a directory. ``source_*``: of that snapshot, which the node has."""

    volume_id: VolumeId
    size_mb: int
    filesystem: Literal["ext4", "xfs", "btrfs"] | None = None
    source_volume_id: VolumeId | None = None
    source_snapshot: Name | None = None


class DiskProvisioned(Record):
    """``quota``: nothing can write more to it than its size."""

    kind: Literal["image", "directory"]
    quota: bool


class DiskGrow(Record):
    volume_id: VolumeId
    size_mb: int


class DiskSnapshot(Record):
    """Keep the disk as it is, frozen for that moment if it is mounted. Or let such a snapshot go."""

    volume_id: VolumeId
    snapshot: Name


class DiskSnapshotTaken(Record):
    size_bytes: int


class DiskTarget(Record):
    """The disk that is to go."""

    volume_id: VolumeId


class NodeInspect(Record):
    """Say again what you are: answered with a ``NodeHello``."""


class OrderCancel(Record):
    """Cut off what was ordered for this process before, and leave nothing of it; such an order fails as ``order.cancelled``.

    ``attempt``: only orders of this attempt and earlier ones; None: all.
    """

    process: str
    process_id: str
    attempt: int | None = None


# ------------------------------------------------------------------------------------------------------- observations


class Observation(StrEnum):
    """The ``verb`` of an ``OBSERVED`` report."""

    NODE_HELLO = "node-hello"
    NODE_BYE = "node-bye"
    SANDBOX_EXITED = "sandbox-exited"
    SANDBOXES = "sandboxes"
    SNAPSHOTS = "snapshots"
    HOLDINGS = "holdings"
    SWEPT = "swept"
    SANDBOX_PORTS = "sandbox-ports"


class Capacity(Record):
    """What a node has, or uses: cores, MiB, MiB, count."""

    cpu: float = 0
    memory_mb: int = 0
    disk_mb: int = 0
    sandboxes: int = 0


class DriverInfo(Record):
    """A driver that works on the node, and the capability flags it may claim (reference/runtimes.md §11)."""

    name: str
    version: str = ""
    flags: tuple[str, ...] = ()


class NodeHello(Record):
    """Said at every start of an agent and when asked: who I am, what I run, what I can do. ``boot`` is new at each agent start."""

    boot: str
    versions: Versions
    drivers: tuple[DriverInfo, ...]
    capacity: Capacity
    storage_pct: float = 0
    roles: tuple[Literal["builder", "runner"], ...] = ("builder", "runner")
    host: dict[str, str] = {}


class SandboxExited(Record):
    sandbox_id: SandboxId
    generation: int = 0
    exit_code: int | None = None
    reason: Literal["exited", "oom", "lost", "killed"] = "exited"


class SandboxPorts(Record):
    """What of a running sandbox's declared ports is served now: all of them, told again when any of it has changed."""

    sandbox_id: SandboxId
    generation: int = 0
    seen_at: datetime
    """By the node's clock, which orders what it says of one generation."""
    ports: Annotated[tuple[PortStatus, ...], Field(max_length=32)]


class SandboxesSeen(Record):
    """After adoption: every sandbox that lives on this node, with its state. What is missing here is really not here."""

    complete: bool
    sandboxes: dict[str, str]


class SnapshotsSeen(Record):
    """Every snapshot that a node's disk has, listed not before ``at``. What could not be listed is never said to be empty."""

    at: datetime
    snapshots: tuple[str, ...]


BODIES: Final[dict[Verb, type[Record]]] = {
    Verb.IMAGE_RESOLVE: ImageResolve,
    Verb.ARTIFACT_BUILD: ArtifactBuild,
    Verb.ARTIFACT_REMOVE: ArtifactRemove,
    Verb.REPLICA_DISTRIBUTE: ReplicaDistribute,
    Verb.REPLICA_PREPARE: ReplicaPrepare,
    Verb.REPLICA_REMOVE: ReplicaRemove,
    Verb.SANDBOX_PROVISION: SandboxProvision,
    Verb.SANDBOX_PAUSE: SandboxTarget,
    Verb.SANDBOX_RESUME: SandboxTarget,
    Verb.SANDBOX_LIMITS: SandboxLimits,
    Verb.SANDBOX_STOP: SandboxTarget,
    Verb.SANDBOX_DESTROY: SandboxTarget,
    Verb.SANDBOX_EXEC: SandboxExec,
    Verb.SANDBOX_SNAPSHOT: SandboxSnapshot,
    Verb.SANDBOX_ROLLBACK: SandboxRollback,
    Verb.SANDBOX_COMMIT: SandboxCommit,
    Verb.SANDBOX_RESTART: SandboxRestart,
    Verb.SNAPSHOT_REMOVE: SnapshotRemove,
    Verb.SNAPSHOT_EXPORT: SnapshotExport,
    Verb.DISK_PROVISION: DiskProvision,
    Verb.DISK_GROW: DiskGrow,
    Verb.DISK_SNAPSHOT: DiskSnapshot,
    Verb.DISK_SNAPSHOT_REMOVE: DiskSnapshot,
    Verb.DISK_REMOVE: DiskTarget,
    Verb.NODE_INSPECT: NodeInspect,
    Verb.NODE_LIST: NodeList,
    Verb.NODE_SWEEP: NodeSweep,
    Verb.ORDER_CANCEL: OrderCancel,
}

RESULTS: Final[dict[Verb, type[Record] | None]] = {
    Verb.IMAGE_RESOLVE: ImageResolved,
    Verb.ARTIFACT_BUILD: ArtifactBuilt,
    Verb.ARTIFACT_REMOVE: None,
    Verb.REPLICA_DISTRIBUTE: None,
    Verb.REPLICA_PREPARE: ReplicaPrepared,
    Verb.REPLICA_REMOVE: None,
    Verb.SANDBOX_PROVISION: SandboxRunning,
    Verb.SANDBOX_PAUSE: None,
    Verb.SANDBOX_RESUME: SandboxRunning,
    Verb.SANDBOX_LIMITS: None,
    Verb.SANDBOX_STOP: SandboxStopped,
    Verb.SANDBOX_DESTROY: SandboxStopped,
    Verb.SANDBOX_EXEC: SandboxExecuted,
    Verb.SANDBOX_SNAPSHOT: SnapshotTaken,
    Verb.SANDBOX_ROLLBACK: SandboxRunning,
    Verb.SANDBOX_COMMIT: SandboxCommitted,
    Verb.SANDBOX_RESTART: SandboxRunning,
    Verb.SNAPSHOT_REMOVE: None,
    Verb.SNAPSHOT_EXPORT: SnapshotExported,
    Verb.DISK_PROVISION: DiskProvisioned,
    Verb.DISK_GROW: None,
    Verb.DISK_SNAPSHOT: DiskSnapshotTaken,
    Verb.DISK_SNAPSHOT_REMOVE: None,
    Verb.DISK_REMOVE: None,
    Verb.NODE_INSPECT: NodeHello,
    Verb.NODE_LIST: Holdings,
    Verb.NODE_SWEEP: Swept,
    Verb.ORDER_CANCEL: None,
}
