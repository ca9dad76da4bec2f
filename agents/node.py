"""This node, as its orders see it: drivers, storage, network, memory, reports. One per agent; every verb is a function of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agents.cache import Cache
from agents.crashpoints import CrashPoints
from agents.cutting import Cuts
from agents.drivers.driver import Driver, Handle
from agents.failures import fail
from agents.fence import Fence
from agents.journal import Journal
from agents.ports import Network, Roots, Volumes
from agents.records import Memory, SandboxRecord, box_entry, gone_entry
from agents.reporting import Reporter
from agents.stock import Stock
from agents.vault import Vault
from domain.nodes.orders import (
    ArtifactBuild,
    ArtifactBuilt,
    BuildProgress,
    ImageResolve,
    ImageResolved,
    NodeHello,
    Order,
    PortStatus,
    SandboxCommitted,
    Versions,
)


class Images(Protocol):
    """Where artifacts come from (``agents.builder``)."""

    async def resolve(self, body: ImageResolve) -> ImageResolved: ...
    async def build(self, body: ArtifactBuild, order_id: str, tell: Callable[[BuildProgress], None]) -> ArtifactBuilt: ...
    async def pack(self, root: Path, disk_mb: int, order_id: str, tell: Callable[[BuildProgress], None]) -> SandboxCommitted: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds. ``port_wait_s``: how long a declared probe port may take (reference/miren-sandbox.md §6.5)."""

    port_wait_s: float = 15
    stop_s: float = 30
    sweep_s: float = 60
    heartbeat_s: float = 10
    usage_s: float = 5
    presence_s: float = 300


class Drivers:
    """The drivers that work here. A sandbox's specification picks one; the first is the default."""

    def __init__(self, working: Mapping[str, Driver]) -> None:
        self._working = dict(working)

    def pick(self, name: str | None) -> Driver:
        """Raises ``driver.unavailable``: what cannot be honoured is refused."""
        chosen = name or next(iter(self._working), None)
        driver = self._working.get(chosen or "")
        if driver is None:
            raise fail("driver.unavailable", f"driver {chosen!r} does not work on this node", available=sorted(self._working))
        return driver

    def __iter__(self) -> Iterator[Driver]:
        return iter(self._working.values())


async def nothing_to_drain(_sandbox: str) -> None:
    """For a node whose sandboxes' output goes nowhere."""


@dataclass
class Doom:
    """That a sandbox is to be destroyed, from the moment the first such order arrives until the last one is done."""

    orders: set[str] = field(default_factory=set)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when another one arrives: an earlier, gentle one has been gentle for long enough."""


@dataclass
class LocalNode:
    """The parts. ``directory`` is this agent's own; nothing outside it is ever removed except what lists say is ours."""

    name: str
    directory: Path
    drivers: Drivers
    roots: Roots
    network: Network
    volumes: Volumes
    cache: Cache
    images: Images
    vault: Vault
    journal: Journal[Memory]
    reporter: Reporter
    clock: Callable[[], datetime]
    crash: CrashPoints
    creating: asyncio.Semaphore
    versions: Callable[[], Versions]
    hello: Callable[[], Awaitable[NodeHello]]
    runtime_line: Callable[[str, str], None] = lambda _sandbox, _text: None
    """Says something in the sandbox's own log."""
    drain_logs: Callable[[str], Awaitable[None]] = nothing_to_drain
    """Ships what is left of a sandbox's output before it goes."""
    changed: Callable[[str], None] = lambda _sandbox: None
    """Told whenever a sandbox's record changes, or goes."""
    settings: Settings = Settings()
    stock: Stock = field(default_factory=Stock)
    """Starts that are held for sandboxes to come (``agents.stocking``)."""
    dooms: dict[str, Doom] = field(default_factory=dict)
    cuts: Cuts = field(default_factory=Cuts)
    fences: dict[str, set[Fence]] = field(default_factory=dict)
    watches: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    served: dict[tuple[str, int], tuple[PortStatus, ...]] = field(default_factory=dict)
    """What was said of the ports of a sandbox's generation when it came up, until somebody watches them (``agents.portwatch``)."""
    swept: dict[str, int] = field(default_factory=dict)
    """How often this process has tried in vain to take down what was left of a sandbox."""

    @property
    def memory(self) -> Memory:
        return self.journal.state

    def find(self, sandbox_id: str) -> SandboxRecord | None:
        return self.memory.sandboxes.get(sandbox_id)

    def get(self, sandbox_id: str) -> SandboxRecord:
        """Raises ``sandbox.not-found``."""
        record = self.find(sandbox_id)
        if record is None:
            raise fail("sandbox.not-found", f"no sandbox {sandbox_id} on node {self.name}", id=sandbox_id)
        return record

    def put(self, record: SandboxRecord) -> SandboxRecord:
        """Write the record down."""
        self.journal.write(box_entry(record))
        self.changed(record.id)
        return record

    def drop(self, sandbox_id: str, *, for_ever: bool) -> None:
        """Write down that nothing of it is left. ``for_ever``: it was destroyed, and no order for it is carried out any more."""
        self.journal.write(gone_entry(sandbox_id, self.clock(), for_ever=for_ever))
        self.changed(sandbox_id)

    def logs(self, sandbox_id: str) -> Path:
        """Where the driver writes the output of a sandbox's main process."""
        return self.directory / "logs" / sandbox_id

    def handle(self, record: SandboxRecord) -> Handle:
        """Raises ``sandbox.not-running`` for one that was never started."""
        if record.handle is None:
            raise fail("sandbox.not-running", f"sandbox {record.id} is not running")
        return Handle(**record.handle)

    @contextlib.contextmanager
    def fenced(self, sandbox_id: str) -> Iterator[Fence]:
        """A fence that the arrival of a destroy closes; closed from the start when that has arrived already."""
        fence = Fence()
        if sandbox_id in self.dooms:
            fence.close()
        self.fences.setdefault(sandbox_id, set()).add(fence)
        try:
            yield fence
        finally:
            self.fences[sandbox_id].discard(fence)
            if not self.fences[sandbox_id]:
                del self.fences[sandbox_id]

    def doom(self, sandbox_id: str, order: Order) -> None:
        """A destroy has arrived: what is in progress for the sandbox gives up, an earlier gentle destroy hurries."""
        doom = self.dooms.setdefault(sandbox_id, Doom())
        if doom.orders and order.id not in doom.orders:
            doom.hurry.set()
        doom.orders.add(order.id)
        for fence in self.fences.get(sandbox_id, ()):
            fence.close()

    def spare(self, sandbox_id: str, order: Order) -> None:
        """A destroy is done, or given up."""
        doom = self.dooms.get(sandbox_id)
        if doom is not None:
            doom.orders.discard(order.id)
            if not doom.orders:
                del self.dooms[sandbox_id]
