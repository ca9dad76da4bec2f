"""What happens to the time that a sandbox has, as it stands in the log."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from domain.kernel.aggregate import Event
from domain.sandboxes.spec import OnTtl
from domain.sandboxes.states import Ttl

if TYPE_CHECKING:
    from domain.sandboxes.sandbox import Sandbox


class SandboxTtlSet(Event):
    TOPIC = "sandbox.ttl-set"
    ttl: Ttl
    ttl_generation: int
    ends_at: datetime | None = None
    ttl_left_s: float | None = None

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.ttl = self.ttl
        sandbox.ttl_generation = self.ttl_generation
        sandbox.ends_at = self.ends_at
        sandbox.ttl_left_s = self.ttl_left_s
        sandbox.ttl_action = None


class SandboxTtlExpired(Event):
    TOPIC = "sandbox.ttl-expired"
    action: OnTtl

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.ttl_action = self.action
        sandbox.ends_at = None


class SandboxTouched(Event):
    """Somebody used it; ``ends_at`` moves on."""

    TOPIC = "sandbox.touched"
    ends_at: datetime

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.last_activity = self.timestamp
        sandbox.ends_at = self.ends_at
