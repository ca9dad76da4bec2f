"""What commands answer, as types. Readers are tolerant: fields that a newer control plane adds are kept, not refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Accepted(BaseModel):
    """A command that was accepted. ``seq``: every query that has read up to it sees the effect. ``settled``: what it started has ended."""

    model_config = ConfigDict(frozen=True, extra="allow")

    command_id: str = ""
    id: str | None = None
    seq: int = 0
    settled: bool | None = None

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Self:
        """From a whole reply: its envelope and its result in one object."""
        envelope = {name: answer[name] for name in ("command_id", "id", "seq") if name in answer}
        return cls.model_validate({**envelope, **(answer.get("result") or {})})


class TemplateAccepted(Accepted):
    template_id: str
    job_id: str


class JobAccepted(Accepted):
    job_id: str


class JobCancelled(Accepted):
    status: str


class BaselineAdopted(Accepted):
    updated: int


class CompatPolicy(Accepted):
    template_id: str
    policy: str


class ArtifactsCollected(Accepted):
    deleted: list[Any] | int = 0
    kept: list[Any] | int = 0


class NodeSwept(Accepted):
    """``removed`` and ``failed``: objects with ``kind``, ``id``, ``why``, those that failed with an ``error`` too."""

    node_id: str
    dry_run: bool = False
    removed: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    kept: int = 0


class ArtifactLinked(Accepted):
    artifact_id: str
    url: str
    token: str
    expires_at: str
    sha256: str
    size_bytes: int


class CompatRescanned(Accepted):
    changed: int


class RolloutAccepted(Accepted):
    rollout_id: str
    state: str


class DiskAccepted(Accepted):
    disk_id: str
    status: str
    node_id: str
    size_mb: int


class DiskReleased(Accepted):
    """``sandbox_id``: who had it, or waited for it."""

    disk_id: str
    sandbox_id: str | None = None


class SnapshotAccepted(Accepted):
    snapshot_id: str
    job_id: str


class SnapshotStored(Accepted):
    """``status``: ``storing`` or ``stored``."""

    snapshot_id: str
    status: str


class SandboxAccepted(Accepted):
    """``unenforced``: bounds of the template that the driver there does not keep. ``handed_over``: it had waited in a pool."""

    sandbox_id: str
    node_id: str | None = None
    state: str
    unenforced: tuple[str, ...] = ()
    handed_over: bool = False


class SandboxState(Accepted):
    state: str


class PoolState(Accepted):
    template_id: str
    state: str
    desired: int
    current: int
    ready: int


class RollbackAccepted(Accepted):
    generation: int
    job_id: str


class SandboxesCloned(Accepted):
    sandbox_ids: list[str]


class PortServed(Accepted):
    """``bound``: the port that it is served on, if that is another one."""

    sandbox_id: str = ""
    port: int = 0
    status: str = ""
    address: str = ""
    bound: int | None = None
    settled: bool = False


class TtlSet(Accepted):
    ends_at: str | None = None


class Executed(Accepted):
    """``stdout`` and ``stderr`` are base64, at most 1 MiB each; ``truncated`` says when there was more."""

    exit_code: int | None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    timed_out: bool = False


class Abandoned(Accepted):
    uncompensated: list[Any] = []


class ViewRebuilt(Accepted):
    generation: int | str | None = None
