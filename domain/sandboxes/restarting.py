"""Sandboxes whose main process is started again when it ends: ``restart: always`` (reference/miren-sandbox.md §1.3, §1.10).

In the same root, under a new generation, after a pause that grows with each crash in a row: 10 s, 20 s … at most 15 minutes. A process that
ran for two minutes, and for longer than the last pause, begins a new row. Meanwhile the sandbox is RUNNING with an operation ``restart``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from domain.kernel.aggregate import Aggregate, Event
from domain.nodes.orders import Failure, PortStatus
from domain.sandboxes.ports import unserved
from domain.sandboxes.states import LIFECYCLE, Exit, ExitReason, Operation, SandboxState

FIRST_PAUSE: Final = timedelta(seconds=10)
LONGEST_PAUSE: Final = timedelta(minutes=15)
STEADY: Final = timedelta(minutes=2)
PATIENCE: Final = timedelta(minutes=10)
"""How long a restart that is due may take: then the sandbox has ended."""


def pause_after(crashes: int) -> timedelta:
    """How long to wait after so many crashes in a row: an exponent that is bounded before it is used."""
    return min(FIRST_PAUSE * float(2 ** min(max(crashes, 1) - 1, 16)), LONGEST_PAUSE)


class SandboxCrashed(Event):
    """Its main process ended, or did not come up again (``failure``), and is to be started at ``restart_at``."""

    TOPIC = "sandbox.crashed"
    generation: int
    exit: Exit
    reason: ExitReason
    crashes: int
    restart_at: datetime
    operation: Operation
    failure: Failure | None = None

    def apply(self, sandbox: Restarts) -> None:
        sandbox.exit = self.exit
        sandbox.crashes = self.crashes
        sandbox.ports = unserved(sandbox.ports)
        sandbox.operation = self.operation
        sandbox.expired = None
        sandbox.last_generation = max(sandbox.last_generation, self.operation.generation or 0)


class SandboxRestarted(Event):
    """It runs again. Its time to live has gone on."""

    TOPIC = "sandbox.restarted"
    generation: int
    driver: str | None = None
    address: str = ""
    ports: tuple[PortStatus, ...] = ()

    def apply(self, sandbox: Restarts) -> None:
        sandbox.operation = None
        sandbox.expired = None
        sandbox.generation = self.generation
        sandbox.driver = self.driver
        sandbox.address = self.address
        sandbox.ports = self.ports
        sandbox.up_since = self.timestamp


class Restarts(Aggregate):
    """The part of a sandbox that comes up again."""

    state: SandboxState
    generation: int
    last_generation: int
    operation: Operation | None
    expired: Operation | None
    driver: str | None
    address: str
    ports: tuple[PortStatus, ...]
    exit: Exit | None
    crashes: int
    """In a row."""
    up_since: datetime | None
    """When its main process was started last."""

    @property
    def restarting(self) -> Operation | None:
        """The restart that is in progress, or waits for its time."""
        return self.operation if self.operation is not None and self.operation.kind == "restart" else None

    def crash(
        self, at: datetime, generation: int, exit_code: int | None, reason: ExitReason = "exited", failure: Failure | None = None
    ) -> None:
        """Its main process has ended and is to come up again. News of the one before it is none."""
        if generation < self.generation or self.restarting is not None or not LIFECYCLE.admits("crash", self.state):
            return
        self._again(at, Exit(code=exit_code, at=at), reason, failure)

    def restarted(
        self, at: datetime, generation: int, address: str = "", ports: tuple[PortStatus, ...] = (), driver: str | None = None
    ) -> None:
        """The node says that it runs again."""
        if self._awaits(generation) and LIFECYCLE.admits("restarted", self.state):
            self.record(
                SandboxRestarted,
                at,
                generation=generation,
                driver=driver or self.driver,
                address=address or self.address,
                ports=ports or self.ports,
            )

    def restart_failed(self, at: datetime, generation: int, failure: Failure) -> None:
        """It did not come up: one crash more."""
        if self._awaits(generation) and LIFECYCLE.admits("restart_failed", self.state):
            self._again(at, self.exit or Exit(code=None, at=at), "exited", failure)

    def _awaits(self, generation: int) -> bool:
        return self.restarting is not None and self.restarting.generation == generation

    def _again(self, at: datetime, exit_: Exit, reason: ExitReason, failure: Failure | None) -> None:
        steady = failure is None and self.up_since is not None and at - self.up_since >= max(STEADY, pause_after(self.crashes))
        crashes = 1 if steady else self.crashes + 1
        restart_at = at + pause_after(crashes)
        operation = Operation(
            kind="restart",
            command=f"restart-{self.last_generation + 1}",
            deadline=restart_at + PATIENCE,
            not_before=restart_at,
            generation=self.last_generation + 1,
        )
        self.record(
            SandboxCrashed,
            at,
            generation=self.generation,
            exit=exit_,
            reason=reason,
            crashes=crashes,
            restart_at=restart_at,
            operation=operation,
            failure=failure,
        )
