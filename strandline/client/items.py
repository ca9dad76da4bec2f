"""What queries answer, as types: the fields of contract.md that every caller may count on. Further fields are kept, not refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

When = Annotated[datetime | None, BeforeValidator(lambda value: value or None)]
"""An instant. Views say "not yet" by nothing or by an empty text."""


class Item(BaseModel):
    """One row of a view."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def raw(self) -> dict[str, Any]:
        """The item as the view gave it: JSON-ready, with only the fields that were there."""
        return self.model_dump(mode="json", exclude_unset=True)


class ReplicaCounts(Item):
    ready: int = 0
    failed: int = 0
    total: int = 0


class Template(Item):
    template_id: str
    alias: str | None = None
    status: str
    artifact_id: str | None = None
    image: str | None = None
    image_digest: str | None = None
    replicas: ReplicaCounts = ReplicaCounts()
    job_id: str | None = None
    created_at: When = None
    last_error: Any = None


class Pull(Item):
    bytes: int = 0
    total_bytes: int | None = None
    layers: int = 0
    total_layers: int | None = None
    bytes_per_s: float | None = None


class Job(Item):
    job_id: str
    operation: str
    resource_type: str = ""
    resource_id: str = ""
    status: str
    phase: str = ""
    progress: float = 0
    pull: Pull = Pull()
    attempt: int = 1
    retry_of: str | None = None
    error: Any = None

    @property
    def ended(self) -> bool:
        """READY or FAILED: it will not move again."""
        return self.status in {"READY", "FAILED"}


class Replica(Item):
    template_id: str
    node_id: str
    status: str
    phase: str | None = None
    artifact_id: str | None = None
    guest_image_version: str | None = None
    agent_version: str | None = None
    kernel_version: str | None = None
    compat: str | None = None
    last_error: Any = None
    last_error_phase: str | None = None


class Artifact(Item):
    artifact_id: str
    status: str | None = None


class Snapshot(Item):
    snapshot_id: str
    name: str | None = None
    status: str
    origin_sandbox_id: str | None = None
    origin_node_id: str | None = None
    size_bytes: int | None = None
    holds: list[str] = []
    runtime_refs: Any = None
    nodes: list[str] | None = None
    stored: dict[str, Any] | None = None
    created_at: When = None
    last_error: Any = None


class Lineage(Item):
    """A template, sandbox or snapshot, and what it came from. ``gone``: it is only a part of others' pasts."""

    id: str
    kind: str
    name: str | None = None
    parent_id: str | None = None
    children: int = 0
    gone: bool = False
    created_at: When = None


class Port(Item):
    port: int
    address: str | None = None
    status: str | None = None
    bound: int | None = None


class Exit(Item):
    code: int | None = None
    at: When = None


class Sandbox(Item):
    sandbox_id: str
    name: str | None = None
    state: str
    known: bool = True
    """False: its node is silent, and all the rest is what was known last."""
    reason: str | None = None
    template_id: str | None = None
    snapshot_id: str | None = None
    node_id: str | None = None
    driver: str | None = None
    address: str | None = None
    ports: list[Port] | None = None
    generation: int | None = None
    exit: Exit | None = None
    started_at: When = None
    ends_at: When = None
    labels: dict[str, str] | None = None


class Versions(Item):
    """Empty text: unknown."""

    guest_image: str = ""
    agent: str = ""
    kernel: str = ""


class CompatCell(Item):
    node_id: str
    compat: str
    bound: Versions | None = None
    current: Versions | None = None


class CompatRow(Item):
    template_id: str
    policy: str = "STRICT"
    overall: str
    nodes: list[CompatCell] = []


class WhatIf(Item):
    """A replica as it is judged now (``compat``), and as it would be if its node ran ``supposed`` (``what_if``)."""

    template_id: str
    node_id: str
    policy: str
    compat: str
    what_if: str
    bound: Versions
    current: Versions
    supposed: Versions


class PlacementVerdict(Item):
    """What placement says of a node. ``rank`` counts from 1 among those that fit; else ``code`` and ``reason`` say why not."""

    node_id: str
    fits: bool
    here: bool = False
    rank: int | None = None
    score: float | None = None
    code: str = ""
    reason: str = ""


class Pool(Item):
    """``members``: sandbox id → number and state. ``cooldown_until``: nothing is created before, because of ``crashes`` in a row."""

    template_id: str
    state: str
    desired: int = 0
    maximum: int = 0
    warm: bool = True
    idle_s: float | None = None
    current: int = 0
    ready: int = 0
    members: dict[str, dict[str, Any]] = {}
    crashes: int = 0
    cooldown_until: When = None
    handed_over: int = 0
    missed: int = 0


class CompatSummary(Item):
    stale_templates: int = 0
    stale_replicas: int = 0
    affected_nodes: int = 0
    missing_replicas: int = 0
    unknown_replicas: int = 0


class Rollout(Item):
    """``nodes``: node id → step. ``held_by``: templates that would be left without a ready replica."""

    rollout_id: str
    state: str
    versions: Versions = Versions()
    at_once: int = 1
    stop_after_s: float | None = None
    nodes: dict[str, str] = {}
    done: int = 0
    total: int = 0
    held_by: list[str] = []
    error: str | None = None
    created_at: When = None
    updated_at: When = None


class KeptDisk(Item):
    """A disk as it was at one moment."""

    name: str
    created_at: When = None
    size_mb: int = 0
    size_bytes: int = 0


class Disk(Item):
    """``sandbox_id``: who has it, or, not ``bound`` yet, waits for it; ``attached_to``: who may still have it mounted."""

    disk_id: str
    volume_id: str = ""
    status: str
    node_id: str = ""
    size_mb: int = 0
    filesystem: str | None = None
    quota: bool = True
    sandbox_id: str | None = None
    bound: bool = False
    attached_to: str | None = None
    epoch: int = 0
    operation: str | None = None
    snapshots: list[KeptDisk] = []
    source: dict[str, str] | None = None
    created_at: When = None
    updated_at: When = None
    last_error: str | None = None
    error_code: str = ""


class DiskLease(Item):
    lease_id: str
    disk: str
    sandbox_id: str
    node_id: str = ""
    status: str
    mount_path: str = ""
    read_only: bool = False
    epoch: int = 0
    deadline: When = None
    reason: str | None = None
    last_error: str | None = None
    error_code: str = ""
    created_at: When = None
    bound_at: When = None
    ended_at: When = None


class Amounts(Item):
    """Cores, MiB, MiB, sandboxes."""

    cpu: float = 0
    memory_mb: int = 0
    disk_mb: int = 0
    sandboxes: int = 0


class Driver(Item):
    name: str
    version: str = ""
    flags: list[str] = []


class Storage(Item):
    usage_pct: float | None = None
    mode: str | None = None


class Node(Item):
    node_id: str
    status: str
    drivers: list[Driver] = []
    versions: Versions = Versions()
    capacity: Amounts = Amounts()
    used: Amounts = Amounts()
    storage: Storage = Storage()
    roles: list[str] = []
    host: dict[str, str] = {}
    last_seen: When = None


class LogEvent(Item):
    """One event of the log, with the position and cause of the commit that it is part of."""

    seq: int
    commit: str = ""
    command: str | None = None
    cause: str | None = None
    actor: str | None = None
    project: str | None = None
    type: str
    id: str
    version: int | None = None
    time: datetime
    data: dict[str, Any] = {}


class Verification(Item):
    """What a check of the log found; ``faults`` names places where it is not what was written."""

    seq: int = 0
    commits: int = 0
    events: int = 0
    aggregates: int = 0
    intact: bool = True
    faults: list[Any] = []
