"""What a sandbox is made of. Immutable: another specification is another sandbox (reference/miren-sandbox.md §1.3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from domain.kernel.aggregate import Record
from domain.kernel.ids import ArtifactId, Name, SnapshotId, TemplateId
from domain.sandboxes.egress import EgressPolicy

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
EnvValue = Annotated[str, StringConstraints(max_length=32_768, pattern=r"^[^\x00]*$")]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=256)]
Argument = Annotated[str, StringConstraints(max_length=32_768, pattern=r"^[^\x00]*$")]
Argv = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=256)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Ports = Annotated[tuple[Port, ...], Field(max_length=16)]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]

MountPath = Annotated[str, StringConstraints(pattern=r"^(/[^/\x00-\x1f]{1,255})+$", max_length=1024)]
"""Absolute, without a slash at its end."""

DriverName = Literal["process", "oci", "vm", "sim"]
Restart = Literal["never", "always"]
"""What follows when the main process ends by itself: the sandbox has ended, or the process is started again."""
TtlKind = Literal["absolute", "idle"]
OnTtl = Literal["delete", "pause"]


class Recipe(Record):
    """How a sandbox of this template starts: from the image's configuration, overridden by the template's own wishes."""

    cmd: Argv = ("/bin/sh",)
    env: Env = {}
    cwd: str = "/"
    user: str = ""
    ports: Ports = ()
    probe_port: Port | None = None
    cpu: Annotated[float, Field(gt=0, le=256)] = 1
    memory_mb: Annotated[int, Field(ge=16, le=1_048_576)] = 512
    disk_mb: Annotated[int, Field(ge=16, le=16_777_216)] = 1024
    pids: Annotated[int, Field(ge=16, le=1_000_000)] = 1024

    @property
    def limits(self) -> Limits:
        """The bounds that can be changed while a sandbox runs."""
        return Limits(cpu=self.cpu, memory_mb=self.memory_mb, pids=self.pids)


class Limits(Record):
    """What a sandbox may use at most: cores, MiB of memory, processes."""

    cpu: float
    memory_mb: int
    pids: int


class ArtifactRef(Record):
    """Which bytes a root file system is: enough for a node to fetch them and to know that they are right."""

    artifact_id: ArtifactId
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class DiskUse(Record):
    """A disk, and where it appears inside. ``lease_timeout_s``: how long the sandbox waits for it."""

    disk: Name
    mount_path: MountPath
    read_only: bool = False
    lease_timeout_s: float = 300


class SandboxSpec(Record):
    """Everything a node needs to start a sandbox, besides its id."""

    template_id: TemplateId
    snapshot_id: SnapshotId | None = None
    artifact: ArtifactRef
    recipe: Recipe
    name: str = ""
    labels: Labels = {}
    driver: DriverName | None = None
    restart: Restart = "never"
    snapshot_manifest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Where a node that does not have the snapshot finds its content."""
    egress: EgressPolicy | None = None
    """None: as the node does it for all."""
    disks: tuple[DiskUse, ...] = ()
