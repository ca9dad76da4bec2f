"""The pool's decisions: how many members it wants, which go, and how long it waits after crashes (reference/miren-sandbox.md §1.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate
from domain.sandboxes import pool_events as events
from domain.sandboxes.pool_events import Member, PoolSettings
from domain.sandboxes.pool_states import LIFECYCLE, PoolState

__all__ = ["HARD_MAXIMUM", "Plan", "Pool", "PoolSettings", "PoolState"]

HARD_MAXIMUM: Final = events.HARD_MAXIMUM
QUICK_CRASH: Final = timedelta(seconds=60)
BACK_OFF_S: Final = 10.0
LONGEST_BACK_OFF: Final = timedelta(minutes=15)
STABLE: Final = timedelta(minutes=2)
SCALE_DOWN_EVERY: Final = timedelta(seconds=30)
EMPTY: Final = timedelta(hours=1)
"""For how long an empty pool that wants nothing is kept."""


def back_off(crashes: int) -> timedelta:
    """10 s, doubled by each crash in a row, at most 15 minutes; nothing for none."""
    return min(timedelta(seconds=BACK_OFF_S * 2 ** min(crashes - 1, 10)), LONGEST_BACK_OFF) if crashes else timedelta()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool lacks, which members go (and which of them because nobody used them), and when to look again."""

    create: int = 0
    retire: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    finish: bool = False
    again_at: datetime | None = None


class Pool(Aggregate):
    TOPIC = "pool"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: PoolState
    settings: PoolSettings
    members: dict[str, Member]
    serial: int
    crashes: int
    """How many in a row."""
    last_crash_at: datetime | None
    cooldown_until: datetime | None
    last_used_at: datetime
    """When somebody last set it, took a member, or a member died."""

    @classmethod
    def create(cls, id: str, at: datetime, settings: PoolSettings) -> Self:  # noqa: A002
        return cls.begin(events.PoolCreated, id, at, settings=settings)

    @property
    def waiting(self) -> list[str]:
        """Members that can be handed over, the oldest first."""
        ready = [(m.ready_at, name) for name, m in self.members.items() if m.ready_at is not None and not m.leaving]
        return [name for _, name in sorted(ready)]

    def configure(self, at: datetime, settings: PoolSettings) -> None:
        if LIFECYCLE.admits("configure", self.state) and (settings != self.settings or self.state is PoolState.GONE):
            self.record(events.PoolConfigured, at, settings=settings)

    def add(self, at: datetime, sandbox_id: str, serial: int) -> None:
        """One more member, for a sandbox that is about to be created."""
        if LIFECYCLE.admits("add", self.state) and serial == self.serial + 1 and len(self.members) < self.settings.maximum:
            taken = {member.number for member in self.members.values()}
            number = next(n for n in range(1, HARD_MAXIMUM + 2) if n not in taken)
            self.record(events.PoolMemberAdded, at, sandbox_id=sandbox_id, number=number, serial=serial)

    def ready(self, at: datetime, sandbox_id: str) -> None:
        member = self.members.get(sandbox_id)
        if LIFECYCLE.admits("ready", self.state) and member is not None and member.ready_at is None:
            self.record(events.PoolMemberReady, at, sandbox_id=sandbox_id)

    def retire(self, at: datetime, sandbox_id: str, idle: bool = False) -> None:
        """Stop a member; ``idle``: and want one less from now on."""
        member = self.members.get(sandbox_id)
        if LIFECYCLE.admits("retire", self.state) and member is not None and not member.leaving:
            desired = max(0, self.settings.desired - 1) if idle else self.settings.desired
            self.record(events.PoolMemberRetired, at, sandbox_id=sandbox_id, desired=desired)

    def left(self, at: datetime, sandbox_id: str, crashed: bool = False) -> None:
        """A member is dead. One that crashed within 60 s of its creation counts, unless it was made before the last crash that did:
        a whole pool that dies of one cause counts once.
        """
        member = self.members.get(sandbox_id)
        if not LIFECYCLE.admits("left", self.state) or member is None:
            return
        quick = crashed and not member.leaving and at - member.created_at <= QUICK_CRASH
        counts = quick and (self.last_crash_at is None or member.created_at > self.last_crash_at)
        crashes = self.crashes + counts
        until = at + back_off(crashes) if counts else self.cooldown_until
        self.record(events.PoolMemberLeft, at, sandbox_id=sandbox_id, crashed=counts, crashes=crashes, cooldown_until=until)

    def hand_over(self, at: datetime, sandbox_id: str) -> bool:
        """Somebody has it now, or nobody: False for one that does not wait here (any more)."""
        admitted = LIFECYCLE.admits("hand_over", self.state) and sandbox_id in self.waiting
        if admitted:
            self.record(events.PoolHandedOver, at, sandbox_id=sandbox_id)
        return admitted

    def miss(self, at: datetime, sandbox_id: str) -> None:
        """None waits: somebody gets a new sandbox. With that his command stands here too, and cannot also be given one that waits."""
        if LIFECYCLE.admits("miss", self.state):
            self.record(events.PoolMissed, at, sandbox_id=sandbox_id)

    def recover(self, at: datetime) -> None:
        """Forget the crashes once a member has run for two minutes, and for as long as the pool last waited."""
        steady = max(STABLE, back_off(self.crashes))
        runs = any(m.ready_at is not None and at - m.ready_at >= steady for m in self.members.values())
        if self.crashes and runs and LIFECYCLE.admits("recover", self.state):
            self.record(events.PoolRecovered, at)

    def request_delete(self, at: datetime) -> None:
        if LIFECYCLE.admits("request_delete", self.state):
            self.record(events.PoolDeleteRequested, at)

    def finish(self, at: datetime) -> None:
        """It is over: nothing is left of it, and nothing is wanted."""
        over = not self.members and self.settings.desired == 0
        if over and LIFECYCLE.admits("finish", self.state):
            self.record(events.PoolDeleted, at)

    # -------------------------------------------------------------------------------------------------------- planning

    def plan(self, now: datetime, used: Mapping[str, datetime]) -> Plan:
        """What comes next. ``used``: when each member was last used; one that is not there counts as in use."""
        cooling = self.cooldown_until is not None and now < self.cooldown_until
        wanted = min(self.settings.desired, self.settings.maximum, 1 if cooling else HARD_MAXIMUM)
        staying = [name for name, member in self.members.items() if not member.leaving]
        order = sorted(staying, key=lambda name: (self.members[name].ready_at is not None, used.get(name, now), name))
        surplus = order[: max(0, len(staying) - wanted)]
        idle = [] if surplus else [name for name in order if self._idle(name, now, used)]
        return Plan(
            create=0 if cooling else max(0, wanted - len(self.members)),
            retire=tuple(surplus),
            idle=tuple(idle),
            finish=self.state is PoolState.DELETING or now - self.last_used_at >= EMPTY,
            again_at=self._again(now, cooling=cooling),
        )

    def _idle(self, name: str, now: datetime, used: Mapping[str, datetime]) -> bool:
        """A member that waits is used when any of them is: what counts is whether somebody comes."""
        if self.settings.idle_s is None or self.members[name].ready_at is None:
            return False
        last = max(used.get(name, now), self.last_used_at)
        return now - last > timedelta(seconds=self.settings.idle_s)

    def _again(self, now: datetime, *, cooling: bool) -> datetime | None:
        """The end of the cooling-off, the next look for idle ones, or for the end of a pool that is empty."""
        if cooling:
            return self.cooldown_until
        if not self.members and self.settings.desired == 0:
            return self.last_used_at + EMPTY
        looks = self.settings.idle_s is not None or self.crashes or len(self.members) < self.settings.desired
        return now + SCALE_DOWN_EVERY if looks else None
