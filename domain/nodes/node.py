"""The node: a machine that runs sandboxes, as far as the log needs to know it. Heartbeats are not events; what they change is.

Two things vary independently. Liveness: ONLINE while its agent is heard, OFFLINE when it was silent for too long, EVICTED when it must not
come back. Scheduling: OPEN for new sandboxes, CORDONED (what runs goes on, nothing new), DRAINING (what runs shall go too: by its own time
to live or its users' doing, and what is left at ``stop_at`` is stopped; nothing runs on elsewhere, because sandboxes do not move).
An evicted node is told so whatever it says, until somebody enrols it again.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, Literal, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.lifecycle import Lifecycle
from domain.nodes.configuration import NodeConfigured
from domain.nodes.orders import Capacity, DriverInfo, Versions
from domain.nodes.placement import Overcommit
from domain.nodes.storage_modes import StorageMode, storage_mode
from domain.nodes.sweeps import NodeSwept, Swept, is_news

Role = Literal["builder", "runner"]


class Liveness(StrEnum):
    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    EVICTED = "EVICTED"


class Scheduling(StrEnum):
    OPEN = "OPEN"
    CORDONED = "CORDONED"
    DRAINING = "DRAINING"


LIVENESS: Final = Lifecycle(
    "node",
    Liveness,
    """
                         ONLINE   OFFLINE  EVICTED
    enroll               =        =        OFFLINE
    hello                ONLINE   ONLINE   !node.evicted
    come_online          =        ONLINE   !node.evicted
    go_offline           OFFLINE  =        =
    cordon               ONLINE   OFFLINE  !node.evicted
    uncordon             ONLINE   OFFLINE  !node.evicted
    drain                ONLINE   OFFLINE  !node.evicted
    configure            ONLINE   OFFLINE  !node.evicted
    evict                EVICTED  EVICTED  =
    change_storage_mode  ONLINE   OFFLINE  =
    swept                ONLINE   OFFLINE  =
    """,
)

SCHEDULING: Final = Lifecycle(
    "node",
    Scheduling,
    """
              OPEN      CORDONED  DRAINING
    cordon    CORDONED  =         CORDONED
    uncordon  =         OPEN      OPEN
    drain     DRAINING  DRAINING  =
    drain:deadline  DRAINING  DRAINING  DRAINING
    """,
)


class NodeEnrolled(CreatedEvent):
    TOPIC = "node.enrolled"
    note: str = ""

    def apply(self, node: Node) -> None:
        node.liveness = Liveness.OFFLINE
        node.scheduling = Scheduling.OPEN
        node.note = self.note
        node.boot = ""
        node.versions = Versions()
        node.drivers = ()
        node.capacity = Capacity()
        node.roles = ()
        node.host = {}
        node.storage = StorageMode.UNKNOWN
        node.storage_pct = None
        node.last_seen = None
        node.stop_at = None
        node.withstanding = ()
        node.labels = {}
        node.overcommit = Overcommit()


class NodeReenrolled(Event):
    """An evicted node may come back, as a node that nothing is known of."""

    TOPIC = "node.re-enrolled"
    note: str = ""

    def apply(self, node: Node) -> None:
        node.liveness = Liveness.OFFLINE
        node.scheduling = Scheduling.OPEN
        node.note = self.note
        node.stop_at = None


class NodeAgentStarted(Event):
    """Another agent process speaks for the node: what its predecessor had in its head is gone."""

    TOPIC = "node.agent-started"
    boot: str

    def apply(self, node: Node) -> None:
        node.boot = self.boot


class NodeDescribed(Event):
    TOPIC = "node.described"
    drivers: tuple[DriverInfo, ...]
    capacity: Capacity
    roles: tuple[Role, ...]
    host: dict[str, str]

    def apply(self, node: Node) -> None:
        node.drivers = self.drivers
        node.capacity = self.capacity
        node.roles = self.roles
        node.host = self.host


class NodeVersionsChanged(Event):
    """What makes replicas stale (reference/cubesandbox.md §6)."""

    TOPIC = "node.versions-changed"
    versions: Versions
    previous: Versions

    def apply(self, node: Node) -> None:
        node.versions = self.versions


class NodeCameOnline(Event):
    TOPIC = "node.came-online"

    def apply(self, node: Node) -> None:
        node.liveness = Liveness.ONLINE


class NodeWentOffline(Event):
    """Nobody hears it. What runs there may well go on; what is known of it is only old."""

    TOPIC = "node.went-offline"
    last_seen: datetime | None = None

    def apply(self, node: Node) -> None:
        node.liveness = Liveness.OFFLINE
        node.last_seen = self.last_seen
        _forget_storage(node)


class NodeCordoned(Event):
    TOPIC = "node.cordoned"

    def apply(self, node: Node) -> None:
        node.scheduling = Scheduling.CORDONED
        node.stop_at = None


class NodeUncordoned(Event):
    TOPIC = "node.uncordoned"

    def apply(self, node: Node) -> None:
        node.scheduling = Scheduling.OPEN
        node.stop_at = None


class NodeDraining(Event):
    """``stop_at``: when what still runs there is stopped; None: never."""

    TOPIC = "node.draining"
    stop_at: datetime | None = None

    def apply(self, node: Node) -> None:
        node.scheduling = Scheduling.DRAINING
        node.stop_at = self.stop_at


class NodeEvicted(Event):
    TOPIC = "node.evicted"

    def apply(self, node: Node) -> None:
        node.liveness = Liveness.EVICTED
        _forget_storage(node)


class NodeStorageModeChanged(Event):
    TOPIC = "node.storage-mode-changed"
    mode: StorageMode
    previous: StorageMode
    pct: float | None = None

    def apply(self, node: Node) -> None:
        node.storage = self.mode
        node.storage_pct = self.pct


def _forget_storage(node: Node) -> None:
    """What a node that cannot be reached said of its disk is old: unknown, until it says it again (design.md §10.5)."""
    node.storage = StorageMode.UNKNOWN
    node.storage_pct = None


class Node(Aggregate):
    TOPIC = "node"
    LIFECYCLES: ClassVar = {"liveness": LIVENESS, "scheduling": SCHEDULING}

    liveness: Liveness
    scheduling: Scheduling
    note: str
    boot: str
    versions: Versions
    drivers: tuple[DriverInfo, ...]
    capacity: Capacity
    roles: tuple[Role, ...]
    host: dict[str, str]
    storage: StorageMode
    storage_pct: float | None
    """The usage when the mode last changed; between changes only the storage view knows it."""
    last_seen: datetime | None
    stop_at: datetime | None
    """Until when sandboxes may run on, while it drains."""
    withstanding: tuple[str, ...]
    """What the last sweep could not take away, by id."""
    labels: dict[str, str]
    overcommit: Overcommit

    @classmethod
    def create(cls, id: str, at: datetime, note: str = "") -> Self:  # noqa: A002
        return cls.begin(NodeEnrolled, id, at, note=note)

    @property
    def status(self) -> str:
        """``ready`` ``cordoned`` ``draining`` ``offline`` ``evicted`` (contract.md)."""
        if self.liveness is not Liveness.ONLINE:
            return self.liveness.value.lower()
        return "ready" if self.scheduling is Scheduling.OPEN else self.scheduling.value.lower()

    @property
    def writable(self) -> bool:
        """May snapshots and rollbacks write here? Not when the disk fills up, nor when nobody knows (reference/cubesandbox.md §5.7)."""
        return self.liveness is Liveness.ONLINE and self.storage in {StorageMode.HEALTHY, StorageMode.WARN}

    def enroll(self, at: datetime, note: str = "") -> None:
        """Enrol it again; news only for one that was evicted."""
        if LIVENESS.admits("enroll", self.liveness):
            self.record(NodeReenrolled, at, note=note)

    def hello(
        self,
        at: datetime,
        boot: str,
        versions: Versions,
        drivers: tuple[DriverInfo, ...],
        capacity: Capacity,
        roles: tuple[Role, ...],
        host: dict[str, str],
        storage_pct: float | None = None,
    ) -> None:
        """Its agent says what it is; only what differs from before is news. Raises ``node.evicted``."""
        LIVENESS.admits("hello", self.liveness)
        if boot != self.boot:
            self.record(NodeAgentStarted, at, boot=boot)
        if (drivers, capacity, roles, host) != (self.drivers, self.capacity, self.roles, self.host):
            self.record(NodeDescribed, at, drivers=drivers, capacity=capacity, roles=roles, host=host)
        if versions != self.versions:
            self.record(NodeVersionsChanged, at, versions=versions, previous=self.versions)
        self.come_online(at)
        self.change_storage_mode(at, storage_pct)

    def come_online(self, at: datetime) -> None:
        if LIVENESS.admits("come_online", self.liveness):
            self.record(NodeCameOnline, at)

    def go_offline(self, at: datetime, last_seen: datetime | None = None) -> None:
        if LIVENESS.admits("go_offline", self.liveness):
            self.record(NodeWentOffline, at, last_seen=last_seen)

    def cordon(self, at: datetime) -> None:
        """No new sandboxes here. Templates still come: cordoned nodes stay targets (reference/cubesandbox.md §3.4)."""
        if self._schedules("cordon"):
            self.record(NodeCordoned, at)

    def uncordon(self, at: datetime) -> None:
        if self._schedules("uncordon"):
            self.record(NodeUncordoned, at)

    def drain(self, at: datetime, stop_after_s: float | None = None) -> None:
        """No new sandboxes, and those that are here shall go; what is left after ``stop_after_s`` is stopped."""
        if not LIVENESS.admits("drain", self.liveness):
            return
        stop_at = None if stop_after_s is None else at + timedelta(seconds=stop_after_s)
        row = "drain" if stop_at is None else "drain:deadline"
        repeated = (self.scheduling, self.stop_at) == (Scheduling.DRAINING, stop_at)
        if SCHEDULING.admits(row, self.scheduling) and not repeated:
            self.record(NodeDraining, at, stop_at=stop_at)

    def configure(self, at: datetime, labels: dict[str, str] | None, ratios: dict[str, float]) -> None:
        """New ``labels``, if any are given, and those ratios of ``Overcommit`` that are; only what differs from before is news."""
        new = (self.labels if labels is None else labels, self.overcommit.model_copy(update=ratios))
        if LIVENESS.admits("configure", self.liveness) and new != (self.labels, self.overcommit):
            self.record(NodeConfigured, at, labels=new[0], overcommit=new[1])

    def must_be_empty(self, now: datetime) -> bool:
        """Is the time over that a drain gave its sandboxes?"""
        return self.scheduling is Scheduling.DRAINING and self.stop_at is not None and now >= self.stop_at

    def evict(self, at: datetime) -> None:
        if LIVENESS.admits("evict", self.liveness):
            self.record(NodeEvicted, at)

    def change_storage_mode(self, at: datetime, pct: float | None) -> None:
        """Its disk is ``pct`` percent full, or nobody knows (None). Only another mode is news."""
        mode = storage_mode(pct)
        if LIVENESS.admits("change_storage_mode", self.liveness) and mode is not self.storage:
            known = None if mode is StorageMode.UNKNOWN else pct
            self.record(NodeStorageModeChanged, at, mode=mode, previous=self.storage, pct=known)

    def swept(self, at: datetime, swept: Swept) -> None:
        """Its agent took away what was nobody's."""
        if LIVENESS.admits("swept", self.liveness) and is_news(swept, self.withstanding):
            self.record(NodeSwept, at, trigger=swept.trigger, removed=swept.removed, failed=swept.failed)

    def _schedules(self, row: str) -> bool:
        return LIVENESS.admits(row, self.liveness) and SCHEDULING.admits(row, self.scheduling)
