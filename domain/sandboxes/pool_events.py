"""What happens to pools. ``apply`` writes down; it never decides."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from domain.kernel.aggregate import CreatedEvent, Event, Record
from domain.sandboxes.pool_states import PoolState

if TYPE_CHECKING:
    from domain.sandboxes.pool import Pool

HARD_MAXIMUM = 20
"""Members of one pool, whatever anybody wishes (reference/miren-sandbox.md §1.10)."""


class PoolSettings(Record):
    """``desired`` members, at most ``maximum``. ``warm``: they are handed over to whoever creates a sandbox of the template.

    ``idle_s``: one that nobody used for longer goes; None: none does.
    """

    desired: int = 0
    maximum: int = HARD_MAXIMUM
    warm: bool = True
    idle_s: float | None = None


class Member(Record):
    """``number``: the lowest that was free. ``ready_at``: since when it runs; ``leaving``: it is being stopped."""

    number: int
    created_at: datetime
    ready_at: datetime | None = None
    leaving: bool = False


class PoolCreated(CreatedEvent):
    TOPIC = "pool.created"
    settings: PoolSettings = PoolSettings()

    def apply(self, pool: Pool) -> None:
        pool.members = {}
        pool.serial = 0
        pool.crashes = 0
        pool.last_crash_at = None
        pool.cooldown_until = None
        pool.last_used_at = self.timestamp
        _settle(pool, self.settings)


class PoolConfigured(Event):
    """Other settings; also of one that was deleted."""

    TOPIC = "pool.configured"
    settings: PoolSettings

    def apply(self, pool: Pool) -> None:
        pool.last_used_at = self.timestamp
        _settle(pool, self.settings)


class PoolMemberAdded(Event):
    """``serial`` counts all members that there ever were; the sandbox follows from it."""

    TOPIC = "pool.member-added"
    sandbox_id: str
    number: int
    serial: int

    def apply(self, pool: Pool) -> None:
        pool.serial = self.serial
        pool.members[self.sandbox_id] = Member(number=self.number, created_at=self.timestamp)


class PoolMemberReady(Event):
    TOPIC = "pool.member-ready"
    sandbox_id: str

    def apply(self, pool: Pool) -> None:
        _member(pool, self.sandbox_id, ready_at=self.timestamp)


class PoolMemberRetired(Event):
    """It is to be stopped. ``desired``: what the pool wants from now on, less by one when nobody used it."""

    TOPIC = "pool.member-retired"
    sandbox_id: str
    desired: int

    def apply(self, pool: Pool) -> None:
        pool.settings = pool.settings.model_copy(update={"desired": self.desired})
        _member(pool, self.sandbox_id, leaving=True)


class PoolMemberLeft(Event):
    """It is dead. ``crashes`` in a row and ``cooldown_until`` are as they are from now on."""

    TOPIC = "pool.member-left"
    sandbox_id: str
    crashed: bool = False
    crashes: int = 0
    cooldown_until: datetime | None = None

    def apply(self, pool: Pool) -> None:
        pool.members.pop(self.sandbox_id, None)
        pool.crashes = self.crashes
        pool.cooldown_until = self.cooldown_until
        pool.last_used_at = self.timestamp
        if self.crashed:
            pool.last_crash_at = self.timestamp


class PoolHandedOver(Event):
    """Somebody asked for a sandbox of the template and has this one now."""

    TOPIC = "pool.handed-over"
    sandbox_id: str

    def apply(self, pool: Pool) -> None:
        pool.members.pop(self.sandbox_id, None)
        pool.last_used_at = self.timestamp


class PoolMissed(Event):
    """Somebody asked for a sandbox when none waited: this one was created for him."""

    TOPIC = "pool.missed"
    sandbox_id: str

    def apply(self, pool: Pool) -> None:
        pool.last_used_at = self.timestamp


class PoolRecovered(Event):
    """A member has lived long enough: crashes are counted from nought again."""

    TOPIC = "pool.recovered"

    def apply(self, pool: Pool) -> None:
        pool.crashes = 0
        pool.cooldown_until = None


class PoolDeleteRequested(Event):
    TOPIC = "pool.delete-requested"

    def apply(self, pool: Pool) -> None:
        pool.state = PoolState.DELETING
        pool.settings = pool.settings.model_copy(update={"desired": 0})


class PoolDeleted(Event):
    TOPIC = "pool.deleted"

    def apply(self, pool: Pool) -> None:
        pool.state = PoolState.GONE


def _settle(pool: Pool, settings: PoolSettings) -> None:
    pool.state = PoolState.ACTIVE
    pool.settings = settings


def _member(pool: Pool, sandbox_id: str, **changes: object) -> None:
    known = pool.members.get(sandbox_id)
    if known is not None:
        pool.members[sandbox_id] = known.model_copy(update=changes)
