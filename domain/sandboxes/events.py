"""What happens to sandboxes, as it stands in the log. ``apply`` writes down; it never decides."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from domain.kernel.aggregate import CreatedEvent, Event
from domain.kernel.text import ErrorText
from domain.nodes.orders import Failure, PortStatus
from domain.sandboxes.placed import Placed
from domain.sandboxes.spec import Limits, SandboxSpec
from domain.sandboxes.states import Exit, Operation, Reason, SandboxState, Ttl

if TYPE_CHECKING:
    from domain.sandboxes.sandbox import Sandbox


class SandboxCreated(CreatedEvent):
    TOPIC = "sandbox.created"
    spec: SandboxSpec
    node_id: str
    ttl: Ttl | None = None
    job_id: str | None = None
    placed: Placed | None = None
    pool: str | None = None
    """The template whose pool it waits in, to be handed over."""

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.state = SandboxState.PENDING
        sandbox.placed = self.placed
        sandbox.pool = self.pool
        sandbox.spec = self.spec
        sandbox.limits = self.spec.recipe.limits
        sandbox.node_id = self.node_id
        sandbox.snapshot_id = self.spec.snapshot_id
        sandbox.job_id = self.job_id
        sandbox.attempt = 1
        sandbox.driver = None
        sandbox.address = ""
        sandbox.ports = ()
        sandbox.ports_seen_at = None
        sandbox.generation = 0
        sandbox.last_generation = 0
        sandbox.operation = None
        sandbox.expired = None
        sandbox.ttl = self.ttl
        sandbox.ttl_generation = 0
        sandbox.ttl_left_s = None
        sandbox.ttl_action = None
        sandbox.ends_at = None
        sandbox.last_activity = None
        sandbox.started_at = None
        sandbox.reason = None
        sandbox.exit = None
        sandbox.failure = None
        sandbox.deleting = False
        sandbox.forgotten = False
        sandbox.crashes = 0
        sandbox.up_since = None
        sandbox.grace_s = 10


class SandboxStarting(Event):
    TOPIC = "sandbox.starting"
    attempt: int

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.state = SandboxState.NOT_READY
        sandbox.attempt = self.attempt


class SandboxStarted(Event):
    """It runs. ``ends_at`` and ``ttl_generation`` belong to its time to live, if it has one."""

    TOPIC = "sandbox.started"
    attempt: int
    driver: str
    address: str = ""
    ports: tuple[PortStatus, ...] = ()
    generation: int = 0
    ends_at: datetime | None = None
    ttl_generation: int = 0

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.up_since = self.timestamp
        sandbox.state = SandboxState.RUNNING
        sandbox.attempt = self.attempt
        sandbox.started_at = self.timestamp
        sandbox.last_activity = self.timestamp
        sandbox.driver = self.driver
        sandbox.address = self.address
        sandbox.ports = self.ports
        sandbox.generation = self.generation
        sandbox.last_generation = max(sandbox.last_generation, self.generation)
        sandbox.ends_at = self.ends_at
        sandbox.ttl_generation = self.ttl_generation


class SandboxStartFailed(Event):
    TOPIC = "sandbox.start-failed"
    attempt: int
    reason: Reason
    failure: Failure

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.state = SandboxState.DEAD
        sandbox.attempt = self.attempt
        sandbox.reason = self.reason
        sandbox.failure = self.failure
        sandbox.operation = None


class SandboxOperationBegun(Event):
    """A pause, resume, rollback, snapshot or other limits were asked for. A rollback's generation is given out here, once and for all."""

    TOPIC = "sandbox.operation-begun"
    operation: Operation

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.operation = self.operation
        sandbox.expired = None
        sandbox.last_generation = max(sandbox.last_generation, self.operation.generation or 0)


class SandboxPaused(Event):
    """``ttl_left_s``: what is left of its time to live, kept until it is resumed; None: it has none, or a new one then."""

    TOPIC = "sandbox.paused"
    command: str
    ttl_left_s: float | None = None

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.state = SandboxState.PAUSED
        sandbox.operation = None
        sandbox.expired = None
        sandbox.ends_at = None
        sandbox.ttl_left_s = self.ttl_left_s
        sandbox.ttl_action = None


class SandboxResumed(Event):
    TOPIC = "sandbox.resumed"
    command: str
    driver: str | None = None
    address: str = ""
    ports: tuple[PortStatus, ...] = ()
    ends_at: datetime | None = None
    ttl_generation: int = 0

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.state = SandboxState.RUNNING
        sandbox.operation = None
        sandbox.expired = None
        sandbox.driver = self.driver
        sandbox.address = self.address
        sandbox.ports = self.ports
        sandbox.ends_at = self.ends_at
        sandbox.ttl_left_s = None
        sandbox.ttl_generation = self.ttl_generation
        sandbox.last_activity = self.timestamp


class SandboxRolledBack(Event):
    TOPIC = "sandbox.rolled-back"
    generation: int
    snapshot_id: str
    driver: str | None = None
    address: str = ""
    ports: tuple[PortStatus, ...] = ()
    ends_at: datetime | None = None
    ttl_generation: int = 0

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.up_since = self.timestamp
        sandbox.state = SandboxState.RUNNING
        sandbox.operation = None
        sandbox.expired = None
        sandbox.generation = self.generation
        sandbox.snapshot_id = self.snapshot_id
        sandbox.driver = self.driver
        sandbox.address = self.address
        sandbox.ports = self.ports
        sandbox.ends_at = self.ends_at
        sandbox.ttl_left_s = None
        sandbox.ttl_generation = self.ttl_generation
        sandbox.last_activity = self.timestamp


class SandboxRollbackFailed(Event):
    """``fatal``: the old machine is gone and the new one did not come up; there is nothing left to go back to."""

    TOPIC = "sandbox.rollback-failed"
    generation: int
    failure: Failure
    fatal: bool = False

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.operation = None
        sandbox.expired = None
        if self.fatal:
            sandbox.state = SandboxState.STOPPED
            sandbox.reason = "rollback_failed"
            sandbox.failure = self.failure
            sandbox.ends_at = None


class SandboxSnapshotEnded(Event):
    TOPIC = "sandbox.snapshot-ended"
    snapshot_id: str
    ok: bool
    error: ErrorText | None = None

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.operation = None
        sandbox.expired = None


class SandboxLimitsChanged(Event):
    """The node keeps it to these from now on."""

    TOPIC = "sandbox.limits-changed"
    command: str
    limits: Limits

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.operation = None
        sandbox.expired = None
        sandbox.limits = self.limits


class SandboxOperationFailed(Event):
    TOPIC = "sandbox.operation-failed"
    kind: str
    command: str
    failure: Failure

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.operation = None
        sandbox.expired = None


class SandboxOperationExpired(Event):
    """Nobody answered in time. The node may still have done it: an answer that comes before the next operation counts."""

    TOPIC = "sandbox.operation-expired"
    kind: str
    command: str

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.expired = sandbox.operation
        sandbox.operation = None


class SandboxStopRequested(Event):
    TOPIC = "sandbox.stop-requested"
    command: str
    reason: Reason
    grace_s: float

    def apply(self, sandbox: Sandbox) -> None:
        _stop(sandbox, self.reason)
        sandbox.grace_s = self.grace_s


class SandboxDeleteRequested(Event):
    """As a stop, but nothing inside is worth waiting for."""

    TOPIC = "sandbox.delete-requested"
    command: str
    reason: Reason

    def apply(self, sandbox: Sandbox) -> None:
        _stop(sandbox, self.reason)
        sandbox.deleting = True
        sandbox.grace_s = 0


class SandboxExited(Event):
    """The main process ended by itself; its exit stands in the same event as the STOPPED that it causes."""

    TOPIC = "sandbox.exited"
    generation: int
    exit: Exit
    reason: Reason

    def apply(self, sandbox: Sandbox) -> None:
        _stop(sandbox, self.reason)
        sandbox.exit = self.exit


class SandboxDestroyed(Event):
    TOPIC = "sandbox.destroyed"
    reason: Reason
    exit: Exit | None = None

    def apply(self, sandbox: Sandbox) -> None:
        _stop(sandbox, self.reason)
        sandbox.state = SandboxState.DEAD
        sandbox.exit = self.exit or sandbox.exit


class SandboxForgotten(Event):
    """It has been dead for long enough: views show it no more. Nothing comes after this."""

    TOPIC = "sandbox.forgotten"

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.forgotten = True


class SandboxExecuted(Event):
    """Somebody ran a command inside: who and when stands in the commit. Never its arguments or its output (design.md §9)."""

    TOPIC = "sandbox.executed"
    command: str
    argv0: str
    exit_code: int
    duration_ms: float
    bytes_out: int = 0
    bytes_err: int = 0

    def apply(self, sandbox: Sandbox) -> None:
        """Only a record; nothing about the sandbox changes."""


class SandboxPortsChanged(Event):
    """What of its declared ports is served has changed; all of them, as they are now."""

    TOPIC = "sandbox.ports-changed"
    generation: int
    seen_at: datetime
    ports: tuple[PortStatus, ...]

    def apply(self, sandbox: Sandbox) -> None:
        sandbox.ports = self.ports
        sandbox.ports_seen_at = self.seen_at


def _stop(sandbox: Sandbox, reason: Reason) -> None:
    sandbox.state = SandboxState.STOPPED
    sandbox.reason = sandbox.reason or reason
    sandbox.operation = None
    sandbox.expired = None
    sandbox.ends_at = None
    sandbox.ttl_action = None
