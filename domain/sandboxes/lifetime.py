"""How long a sandbox lives: its time to live, absolute or idle, and what happens when that is over. A part of ``Sandbox``."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from domain.kernel.aggregate import Aggregate
from domain.sandboxes import lifetime_events as events
from domain.sandboxes.spec import Labels, OnTtl, TtlKind
from domain.sandboxes.states import LIFECYCLE, SandboxState, Ttl

TOUCH_EVERY: Final = timedelta(seconds=30)
"""How often activity is worth an event (reference/miren-sandbox.md §1.2)."""


class Lifetime(Aggregate):
    """The clock of a sandbox. It stands still while the sandbox is paused."""

    state: SandboxState
    pool: str | None
    """The template whose pool it waits in; None: somebody has it."""
    ttl: Ttl | None
    ttl_generation: int
    ttl_left_s: float | None
    ttl_action: OnTtl | None
    """What its expired time to live demands, until it is done."""
    ends_at: datetime | None
    last_activity: datetime | None

    def hand_over(self, at: datetime, command_id: str, labels: Labels, ttl: Ttl | None) -> None:
        """Out of its pool, to whoever asked for a sandbox of its template; no news for one that somebody has."""
        if not LIFECYCLE.admits("hand_over", self.state) or self.pool is None:
            return
        ends_at, generation = self._clock_from(at, None, ttl)
        self.record(events.SandboxHandedOver, at, command=command_id, labels=labels, ttl=ttl, ends_at=ends_at, ttl_generation=generation)

    def set_ttl(self, at: datetime, seconds: float | None, kind: TtlKind | None = None) -> None:
        """A new time to live, from now. None or a negative number: for ever; 0: at once (reference/cubesandbox.md §9)."""
        if not LIFECYCLE.admits("set_ttl", self.state):
            return
        known = self.ttl or Ttl()
        ttl = known.model_copy(update={"seconds": None if seconds is None or seconds < 0 else seconds, "kind": kind or known.kind})
        paused = self.state is SandboxState.PAUSED
        runs = self.state is SandboxState.RUNNING and ttl.seconds is not None
        ends_at = at + timedelta(seconds=ttl.seconds or 0) if runs else None
        left = ttl.seconds if paused else None
        if (ttl, ends_at, left) != (self.ttl, self.ends_at, self.ttl_left_s):
            self.record(events.SandboxTtlSet, at, ttl=ttl, ttl_generation=self.ttl_generation + 1, ends_at=ends_at, ttl_left_s=left)

    def ttl_due(self, at: datetime, ttl_generation: int) -> OnTtl | None:
        """Its timer rang. Says what is to be done now; None: nothing (a stale timer, or ``ends_at`` has moved on)."""
        if ttl_generation != self.ttl_generation or not LIFECYCLE.admits("ttl_due", self.state):
            return None
        if self.ttl_action is None:
            if self.ttl is None or self.ends_at is None or at < self.ends_at:
                return None
            self.record(events.SandboxTtlExpired, at, action=self.ttl.on_ttl)
        return self.ttl_action

    def touch(self, at: datetime, busy_s: float = 0) -> None:
        """Somebody uses it, and may do so for ``busy_s`` from now: an idle time to live begins when that is over.

        Noted at most every 30 seconds; but at once where it would end meanwhile, and where somebody was done sooner than he had said.
        """
        if not LIFECYCLE.admits("touch", self.state) or self.ttl is None or self.ttl.kind != "idle" or self.ends_at is None:
            return
        ends_at = at + timedelta(seconds=busy_s + (self.ttl.seconds or 0))
        used = self.last_activity is None or at - self.last_activity >= TOUCH_EVERY
        outlived = self.ends_at <= at + timedelta(seconds=busy_s)
        if (used and ends_at > self.ends_at) or outlived or (not busy_s and self.ends_at - ends_at >= TOUCH_EVERY):
            self.record(events.SandboxTouched, at, ends_at=ends_at)

    def _clock_from(self, at: datetime, left_s: float | None, new: Ttl | None = None) -> tuple[datetime | None, int]:
        """When the time to live ends if it runs from ``at``, with ``left_s`` of it left (None: all), and the timer's generation."""
        ttl = new or self.ttl
        if ttl is None or ttl.seconds is None:
            return None, self.ttl_generation
        return at + timedelta(seconds=ttl.seconds if left_s is None else left_s), self.ttl_generation + 1
