"""What the fleet index has of each thing (``handlers/fleet.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from domain.nodes.orders import Capacity, Versions
from domain.nodes.placement import Overcommit


@dataclass(slots=True)
class NodeEntry:
    """A node as far as placement is concerned. ``used`` counts what the log has placed there, not what the node reports."""

    node_id: str
    online: bool = True
    evicted: bool = False
    scheduling: str = "OPEN"
    drivers: tuple[str, ...] = ()
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    versions: Versions = field(default_factory=Versions)
    capacity: Capacity = field(default_factory=Capacity)
    used_cpu: float = 0
    used_memory_mb: int = 0
    sandboxes: int = 0
    storage_mode: str = "unknown"
    roots: str = ""
    disks: tuple[str, ...] = ()
    """File systems that disks can have there, or ``directory``."""
    labels: dict[str, str] = field(default_factory=dict)
    overcommit: Overcommit = field(default_factory=Overcommit)

    @property
    def healthy(self) -> bool:
        """Online and not evicted. A cordoned node is healthy: cordoning only stops new sandboxes (reference/cubesandbox.md §3.4)."""
        return self.online and not self.evicted


@dataclass(slots=True)
class ReplicaEntry:
    template_id: str
    node_id: str
    project: str
    state: str = "PENDING"
    bound: Versions = field(default_factory=Versions)
    driver: str = ""


@dataclass(slots=True)
class SandboxEntry:
    sandbox_id: str
    project: str
    node_id: str
    template_id: str
    snapshot_id: str | None
    cpu: float
    memory_mb: int
    seq: int = 0
    """Where in the log it was created."""
    before: dict[str, Any] | None = None
    """What it might use before other limits were asked for, while they are."""


@dataclass(frozen=True, slots=True)
class Dead:
    """A sandbox that is dead, since when, and not forgotten yet."""

    project: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Fence:
    """Where in the log a template's delete began, in which commit, and by which command."""

    seq: int
    commit: str
    command: str
