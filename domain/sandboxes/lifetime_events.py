"""What happens to a sandbox's time to live, and its hand-over out of a pool, with which that begins."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from domain.kernel.aggregate import Event
from domain.sandboxes.spec import Labels, OnTtl
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


class SandboxHandedOver(Event):
    """Somebody has it now who asked for a new one; until then it waited in a pool. Its time to live begins here."""

    TOPIC = "sandbox.handed-over"
    command: str
    labels: Labels = {}
    ttl: Ttl | None = None
    ends_at: datetime | None = None
    ttl_generation: int = 0

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.pool = None
        sandbox.spec = sandbox.spec.model_copy(update={"labels": self.labels})
        sandbox.ttl = self.ttl
        sandbox.ends_at = self.ends_at
        sandbox.ttl_generation = self.ttl_generation
        sandbox.last_activity = self.timestamp
