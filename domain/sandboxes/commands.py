"""What callers can ask of sandboxes (contract.md)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from domain.kernel.aggregate import Record
from domain.kernel.command import Command, Part
from domain.kernel.ids import JobId, Name, NodeId, SandboxId, SnapshotId
from domain.sandboxes.egress import EgressPolicy
from domain.sandboxes.placed import Strategy
from domain.sandboxes.spec import Argv, Env, EnvName, EnvValue, Labels, MountPath, OnTtl, Port, Ports, Restart, TtlKind

RESERVED_PATHS = frozenset({"dev", "proc", "sys"})
"""What the system inside has for itself."""
EXAMPLE_ID = "sb-aaaaaaaaaaaaaaaaaaaa"

TtlSeconds = Annotated[float, Field(ge=-1, le=31_536_000)]
"""Seconds, at most a year. -1: for ever; 0: at once."""
Path = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
User = Annotated[str, StringConstraints(max_length=256, pattern=r"^[A-Za-z0-9._:-]*$")]
Stdin = Annotated[str, StringConstraints(max_length=196_608, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
"""Base64."""


class DiskMount(Part):
    """Where a disk shall appear inside. ``lease_timeout_s``: how long to wait for it when the sandbox that had it is just ending."""

    disk: Name
    mount_path: MountPath
    read_only: bool = False
    lease_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 300


class Egress(EgressPolicy):
    """Which addresses, networks or domains a sandbox may talk to. Allowed comes first, then denied, then private, then the internet.

    Entries are ``1.1.1.1``, ``10.0.0.0/8``, ``example.org`` or ``*.example.org``, with ``:443`` or ``:8000-8080`` for some ports only.
    """

    model_config = Part.model_config


class SandboxStatus(Record):
    """What the sandbox is after the command. ``settled``: did what was asked happen within ``wait_s``?

    ``unenforced``: bounds of its template that the driver on its node does not keep, such as ``disk_mb``. One that the caller asked for
    himself is refused there instead, as ``sandbox.unsupported``. ``handed_over``: it had waited in a pool.
    """

    sandbox_id: SandboxId
    state: str
    node_id: NodeId | None = None
    settled: bool = False
    unenforced: tuple[str, ...] = ()
    handed_over: bool = False


class SandboxCreate(Command):
    """Start a sandbox from a template (or its alias), or from a snapshot."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "create"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base", "ttl_s": 300, "wait_s": 30}
    RESULT: ClassVar[type[Record]] = SandboxStatus

    template: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    snapshot_id: SnapshotId | None = Field(default=None, validate_default=True)
    name: Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    cpu: Annotated[float, Field(gt=0, le=256)] | None = None
    memory_mb: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    env: Env = {}
    cmd: Argv | None = None
    ports: Ports | None = None
    ttl_s: TtlSeconds | None = None
    ttl_kind: TtlKind = "absolute"
    on_ttl: OnTtl = "delete"
    auto_resume: bool = False
    restart: Restart = "never"
    node: NodeId | None = None
    node_labels: Labels = {}
    strategy: Strategy = "spread"
    labels: Labels = {}
    disks: Annotated[tuple[DiskMount, ...], Field(max_length=16)] = ()
    egress: Egress | None = None

    @field_validator("disks")
    @classmethod
    def _apart(cls, disks: tuple[DiskMount, ...]) -> tuple[DiskMount, ...]:
        """Once each, and none where another one, or the system inside, is."""
        if len({mount.disk for mount in disks}) != len(disks):
            raise ValueError("a disk can be mounted once")
        paths = [mount.mount_path.split("/")[1:] for mount in disks]
        for n, path in enumerate(paths):
            if path[0] in RESERVED_PATHS or {".", ".."} & set(path):
                raise ValueError(f"no disk can be mounted at {disks[n].mount_path}")
            if any(path == other[: len(path)] for m, other in enumerate(paths) if m != n):
                raise ValueError("a disk cannot lie in another one's directory")
        return disks

    @field_validator("snapshot_id")
    @classmethod
    def _or_template(cls, snapshot_id: str | None, info: ValidationInfo) -> str | None:
        if "template" in info.data and (info.data["template"] is None) == (snapshot_id is None):
            raise ValueError("give exactly one of template and snapshot_id")
        return snapshot_id


class _OnSandbox(Command):
    """A command about one sandbox and nothing else."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID}
    RESULT: ClassVar[type[Record] | None] = SandboxStatus

    sandbox_id: SandboxId


class SandboxPause(_OnSandbox):
    """Freeze it. Its time to live stands still until it is resumed."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "pause"


class SandboxResume(_OnSandbox):
    """Let a paused sandbox go on."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "resume"


class SandboxUpdateLimits(_OnSandbox):
    """Other limits while it runs, also in force after a rollback; what is not given stays.

    Refused as ``sandbox.unsupported`` where its driver cannot, and as ``capacity.exhausted`` where its node has not so much left.
    """

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "update-limits"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "memory_mb": 1024}

    cpu: Annotated[float, Field(gt=0, le=256)] | None = None
    memory_mb: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    pids: Annotated[int, Field(ge=16, le=1_000_000)] | None = Field(default=None, validate_default=True)

    @property
    def wanted(self) -> dict[str, float]:
        """The limits that are given."""
        given = {"cpu": self.cpu, "memory_mb": self.memory_mb, "pids": self.pids}
        return {name: limit for name, limit in given.items() if limit is not None}

    @field_validator("pids")
    @classmethod
    def _or_another(cls, pids: int | None, info: ValidationInfo) -> int | None:
        if pids is None and {"cpu", "memory_mb"} <= info.data.keys() and info.data["cpu"] is None and info.data["memory_mb"] is None:
            raise ValueError("give one or more of cpu, memory_mb and pids")
        return pids


class SandboxStop(_OnSandbox):
    """End it gently: SIGTERM, then SIGKILL after ``grace_s``, then remove it."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "stop"

    grace_s: Annotated[float, Field(ge=0, le=600)] = 10


class SandboxDelete(_OnSandbox):
    """End it at once and remove it. Possible in every state."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "delete"


class RollbackStarted(Record):
    """``generation`` grows with every rollback; ``settled``: did it end within ``wait_s``?"""

    generation: int
    job_id: JobId
    settled: bool = False


class SandboxRollback(Command):
    """Put it back to one of its own snapshots. Open connections break."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "rollback"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "snapshot_id": "snap-000000000000000000000000"}
    RESULT: ClassVar[type[Record]] = RollbackStarted

    sandbox_id: SandboxId
    snapshot_id: SnapshotId


class Cloned(Record):
    sandbox_ids: tuple[SandboxId, ...]
    job_id: JobId | None = None
    settled: bool = False


class SandboxClone(Command):
    """Start ``count`` sandboxes from what it is now."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "clone"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "count": 2}
    RESULT: ClassVar[type[Record]] = Cloned

    sandbox_id: SandboxId
    count: Annotated[int, Field(ge=1, le=100)] = 1


class TtlSet(Record):
    ends_at: datetime | None = None


class SandboxSetTtl(Command):
    """A new time to live, from now on. Null or -1: for ever."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "set-ttl"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "ttl_s": 600}
    RESULT: ClassVar[type[Record]] = TtlSet

    sandbox_id: SandboxId
    ttl_s: TtlSeconds | None
    ttl_kind: TtlKind | None = None


class Executed(Record):
    """``stdout`` and ``stderr``: base64 of at most 1 MiB each."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    timed_out: bool = False
    duration_ms: float = 0


class SandboxExec(Command):
    """Run a command inside and wait for it, at most ``timeout_s``; then everything it started is killed."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "exec"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "cmd": ["uname", "-a"]}
    RESULT: ClassVar[type[Record]] = Executed

    sandbox_id: SandboxId
    cmd: Argv
    env: Annotated[dict[EnvName, EnvValue], Field(max_length=256)] = {}
    cwd: Path = ""
    user: User = ""
    stdin: Stdin = ""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60


class PortServed(Record):
    """``bound``: the port that it is served on, if that is another one. ``settled``: does it listen?"""

    sandbox_id: SandboxId
    port: Port
    status: str
    address: str = ""
    bound: Port | None = None
    settled: bool = False


class SandboxWaitPort(_OnSandbox):
    """Wait until something listens on one of its declared ports, at most ``wait_s``. Its end beats the port."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "wait-port"
    EXAMPLE: ClassVar[dict[str, Any]] = {"sandbox_id": EXAMPLE_ID, "port": 8080, "wait_s": 30}
    RESULT: ClassVar[type[Record] | None] = PortServed

    port: Port


class Abandoned(Record):
    """What may be left on the node."""

    uncompensated: tuple[str, ...]


class SandboxAbandon(_OnSandbox):
    """Give up undoing a failed creation that is blocked; says what may be left behind."""

    NOUN: ClassVar[str] = "sandbox"
    VERB: ClassVar[str] = "abandon"
    RESULT: ClassVar[type[Record] | None] = Abandoned
