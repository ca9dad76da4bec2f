"""The sandbox: one run of an isolated workload. Its specification never changes; RUNNING once, DEAD for ever.

States and rules stand in ``states.py``, events in ``events.py``; here are the decisions. Methods take the time first, record events, record
none because the thing is already so (or the report is older than what is known), or raise ``Refused``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Self

from domain.kernel.errors import Refused
from domain.kernel.text import Why, clip
from domain.nodes.orders import Failure, PortStatus
from domain.sandboxes import events
from domain.sandboxes.lifetime import Lifetime
from domain.sandboxes.placed import Placed
from domain.sandboxes.ports import after, require
from domain.sandboxes.restarting import Restarts
from domain.sandboxes.spec import Limits, SandboxSpec
from domain.sandboxes.states import HORIZON, LIFECYCLE, TOO_LATE, Exit, ExitReason, Operation, OperationKind, Reason, SandboxState, Ttl

__all__ = ["Exit", "Operation", "Reason", "Sandbox", "SandboxState", "Ttl"]


class Sandbox(Lifetime, Restarts):
    TOPIC = "sandbox"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    spec: SandboxSpec
    limits: Limits
    """What it may use now: its specification's, until somebody changes them."""
    node_id: str
    placed: Placed | None
    snapshot_id: str | None
    """Which snapshot backs it now: that of its specification, or the last one it was rolled back to."""
    job_id: str | None
    attempt: int
    driver: str | None
    address: str
    ports: tuple[PortStatus, ...]
    ports_seen_at: datetime | None
    generation: int
    last_generation: int
    """The greatest generation ever given out; the next rollback gets one more, also when this one never came to be."""
    operation: Operation | None
    expired: Operation | None
    """The operation whose deadline passed last, until another one begins: its late answer is still the truth."""
    started_at: datetime | None
    reason: Reason | None
    exit: Exit | None
    failure: Failure | None
    deleting: bool
    forgotten: bool
    grace_s: float
    """How long its main process may take to end by itself, once somebody wants it to end."""

    @classmethod
    def create(
        cls,
        id: str,  # noqa: A002
        at: datetime,
        spec: SandboxSpec,
        node_id: str,
        ttl: Ttl | None = None,
        job_id: str | None = None,
        placed: Placed | None = None,
        pool: str | None = None,
    ) -> Self:
        said = {"spec": spec, "node_id": node_id, "ttl": ttl, "job_id": job_id, "placed": placed, "pool": pool}
        return cls.begin(events.SandboxCreated, id, at, **said)

    def may_return_to(self, snapshot_id: str) -> bool:
        """Is a rollback to it under way, or given up so lately that its answer may still come? (The dead do nothing any more.)"""
        return any(o is not None and (o.kind, o.snapshot_id) == ("rollback", snapshot_id) for o in (self.operation, self.expired))

    # -------------------------------------------------------------------------------------------------- coming up

    def starting(self, at: datetime, attempt: int) -> None:
        """The node has begun to boot it."""
        if attempt >= self.attempt and LIFECYCLE.admits("starting", self.state):
            self.record(events.SandboxStarting, at, attempt=attempt)

    def mark_running(
        self, at: datetime, attempt: int, driver: str, address: str = "", ports: tuple[PortStatus, ...] = (), generation: int = 0
    ) -> None:
        """The node says that it runs. A sandbox that somebody stopped meanwhile stays stopped."""
        if attempt < self.attempt or not LIFECYCLE.admits("mark_running", self.state):
            return
        ends_at, ttl_generation = self._clock_from(at, None)
        self.record(
            events.SandboxStarted,
            at,
            attempt=attempt,
            driver=driver,
            address=address,
            ports=ports,
            generation=generation,
            ends_at=ends_at,
            ttl_generation=ttl_generation,
        )

    def fail_start(self, at: datetime, attempt: int, reason: Reason, failure: Failure) -> None:
        """It did not come up and what had been made is undone, or being undone. A stop that came first keeps its reason."""
        if attempt >= self.attempt and LIFECYCLE.admits("fail_start", self.state):
            self.record(events.SandboxStartFailed, at, attempt=attempt, reason=self.reason or reason, failure=failure)

    @property
    def start_failure(self) -> Failure | None:
        """Why it ended, or is ending, before anybody could use it."""
        return TOO_LATE if self.reason == "template_deleted" else self.failure if self.state is SandboxState.DEAD else None

    # ----------------------------------------------------------------------------------------- one operation at a time

    def request_pause(self, at: datetime, command_id: str, deadline: datetime) -> None:
        if self._begins("request_pause", "pause", command_id):
            self._begin(at, "pause", command_id, deadline)

    def paused(self, at: datetime, command_id: str) -> None:
        if self._answered("pause", command_id) and LIFECYCLE.admits("paused", self.state):
            left = None if self.ends_at is None else max(0.0, (self.ends_at - at).total_seconds())
            self.record(events.SandboxPaused, at, command=command_id, ttl_left_s=left)

    def request_resume(self, at: datetime, command_id: str, deadline: datetime) -> None:
        if self._begins("request_resume", "resume", command_id):
            self._begin(at, "resume", command_id, deadline)

    def resumed(
        self, at: datetime, command_id: str, address: str = "", ports: tuple[PortStatus, ...] = (), driver: str | None = None
    ) -> None:
        """It runs on. Its time to live runs on too, with what was left of it."""
        if not self._answered("resume", command_id) or not LIFECYCLE.admits("resumed", self.state):
            return
        ends_at, ttl_generation = self._clock_from(at, self.ttl_left_s)
        self.record(
            events.SandboxResumed,
            at,
            command=command_id,
            driver=driver or self.driver,
            address=address or self.address,
            ports=ports or self.ports,
            ends_at=ends_at,
            ttl_generation=ttl_generation,
        )

    def request_rollback(
        self, at: datetime, command_id: str, snapshot_id: str, snapshot_origin: str, job_id: str | None, deadline: datetime
    ) -> int:
        """Ask for a rollback and give out its generation, greater than every earlier one (reference/cubesandbox.md §5.4).

        Raises ``snapshot.foreign`` for a snapshot of another sandbox: also a clone cannot go back to before it was cloned.
        """
        if self._begins("request_rollback", "rollback", command_id):
            if snapshot_origin != self.id:
                raise Refused(
                    "snapshot.foreign",
                    f"snapshot {snapshot_id} was taken of {snapshot_origin}, not of {self.id}",
                    details={"snapshot_id": snapshot_id, "origin": snapshot_origin},
                )
            new = self.last_generation + 1
            self._begin(at, "rollback", command_id, deadline, snapshot_id=snapshot_id, generation=new, job_id=job_id)
        return self.last_generation

    def rolled_back(
        self, at: datetime, generation: int, address: str = "", ports: tuple[PortStatus, ...] = (), driver: str | None = None
    ) -> None:
        operation = self._rollback_of(generation)
        if operation is None or not LIFECYCLE.admits("rolled_back", self.state):
            return
        ends_at, ttl_generation = (
            self._clock_from(at, self.ttl_left_s) if self.state is SandboxState.PAUSED else (self.ends_at, self.ttl_generation)
        )
        self.record(
            events.SandboxRolledBack,
            at,
            generation=generation,
            snapshot_id=operation.snapshot_id,
            driver=driver or self.driver,
            address=address or self.address,
            ports=ports or self.ports,
            ends_at=ends_at,
            ttl_generation=ttl_generation,
        )

    def rollback_failed(self, at: datetime, generation: int, failure: Failure, fatal: bool = False) -> None:
        """``fatal``: the machine could not be restored and the old one is gone, so the sandbox ends; else nothing was touched."""
        row = "rollback_failed:fatal" if fatal else "rollback_failed:untouched"
        if self._rollback_of(generation) and LIFECYCLE.admits(row, self.state):
            self.record(events.SandboxRollbackFailed, at, generation=generation, failure=failure, fatal=fatal)

    def begin_snapshot(self, at: datetime, command_id: str, snapshot_id: str, deadline: datetime, job_id: str | None = None) -> None:
        if self._begins("begin_snapshot", "snapshot", command_id):
            self._begin(at, "snapshot", command_id, deadline, snapshot_id=snapshot_id, job_id=job_id)

    def end_snapshot(self, at: datetime, snapshot_id: str, ok: bool, error: Why = None) -> None:
        operation = self.operation
        if operation is not None and operation.kind == "snapshot" and operation.snapshot_id == snapshot_id:
            LIFECYCLE.admits("end_snapshot", self.state)
            self.record(events.SandboxSnapshotEnded, at, snapshot_id=snapshot_id, ok=ok, error=clip(error))

    def operation_failed(self, at: datetime, command_id: str, failure: Failure) -> None:
        """What was asked for did not happen; the sandbox is as it was."""
        operation = self.operation
        if operation is not None and operation.command == command_id and LIFECYCLE.admits("operation_failed", self.state):
            self.record(events.SandboxOperationFailed, at, kind=operation.kind, command=command_id, failure=failure)

    def operation_expired(self, at: datetime, command_id: str) -> None:
        """Give up waiting, once the deadline has passed: nothing stays busy for ever."""
        operation = self.operation
        if operation is None or operation.kind == "restart" or operation.command != command_id or at < operation.deadline:
            return
        if LIFECYCLE.admits("operation_expired", self.state):
            self.record(events.SandboxOperationExpired, at, kind=operation.kind, command=command_id)

    def request_limits(self, at: datetime, command_id: str, wanted: dict[str, float], deadline: datetime) -> None:
        """Other limits while it runs; those that are not named stay. No news when it has them already."""
        limits = self.limits.model_copy(update=wanted)
        if self._begins("request_limits", "limits", command_id) and limits != self.limits:
            self._begin(at, "limits", command_id, deadline, limits=limits)

    def limits_changed(self, at: datetime, command_id: str) -> None:
        operation = self.operation or self.expired
        if operation is not None and self._answered("limits", command_id) and LIFECYCLE.admits("limits_changed", self.state):
            self.record(events.SandboxLimitsChanged, at, command=command_id, limits=operation.limits)

    # ------------------------------------------------------------------------------------------------------ going down

    def request_stop(self, at: datetime, command_id: str, grace_s: float = 10, reason: Reason | None = None) -> None:
        """Please tear it down, gently. Ends whatever was in progress, a create included (reference/miren-sandbox.md §2.4b.5)."""
        if LIFECYCLE.admits("request_stop", self.state):
            why = reason or self._own_reason("user_stop")
            self.record(events.SandboxStopRequested, at, command=command_id, reason=why, grace_s=grace_s)

    def request_delete(self, at: datetime, command_id: str, reason: Reason | None = None) -> None:
        """Please tear it down at once; also cuts a gentle stop short."""
        if LIFECYCLE.admits("request_delete", self.state) and not self.deleting:
            why = reason or self._own_reason("user_delete")
            self.record(events.SandboxDeleteRequested, at, command=command_id, reason=why)

    def exited(self, at: datetime, generation: int, exit_code: int | None, reason: ExitReason = "exited") -> None:
        """The node saw the main process end. An exit of an older machine, or of the one that a rollback replaces, is no news."""
        newer = self.operation if self.operation and self.operation.kind in {"rollback", "restart"} else None
        replaced = newer is not None and generation < (newer.generation or 0)
        if generation < self.generation or replaced or not LIFECYCLE.admits("exited", self.state):
            return
        if self.spec.restart == "always" and self.state is SandboxState.RUNNING and reason != "lost":
            self.crash(at, generation, exit_code, reason)
            return
        why: Reason = "node_lost" if reason == "lost" else reason
        self.record(events.SandboxExited, at, generation=generation, exit=Exit(code=exit_code, at=at), reason=why)

    def destroyed(self, at: datetime, exit_code: int | None = None, reason: Reason = "node_lost") -> None:
        """Nothing is left of it. ``reason`` counts only when nobody had asked for its end."""
        if LIFECYCLE.admits("destroyed", self.state):
            end = None if exit_code is None or self.exit is not None else Exit(code=exit_code, at=at)
            self.record(events.SandboxDestroyed, at, reason=self.reason or reason, exit=end)

    def forget(self, at: datetime) -> None:
        """Show it no more, if it has been dead for so long; being dead is the last thing that changed it."""
        if LIFECYCLE.admits("forget", self.state) and not self.forgotten and at - self.modified_on >= HORIZON:
            self.record(events.SandboxForgotten, at)

    # ------------------------------------------------------------------------------------------------------ in between

    @property
    def resting(self) -> bool:
        """Is it paused, or about to be?"""
        return self.state is SandboxState.PAUSED or (self.operation is not None and self.operation.kind == "pause")

    def require_exec(self) -> None:
        """Raises ``sandbox.illegal-state`` unless a command can be run inside now."""
        LIFECYCLE.admits("require_exec", self.state)

    def require_disk(self) -> None:
        """Raises ``sandbox.illegal-state`` unless it has a disk that something can be made of now."""
        LIFECYCLE.admits("require_disk", self.state)

    def executed(
        self, at: datetime, command_id: str, exit_code: int, duration_ms: float, argv0: str, bytes_out: int = 0, bytes_err: int = 0
    ) -> None:
        if LIFECYCLE.admits("executed", self.state):
            self.record(
                events.SandboxExecuted,
                at,
                command=command_id,
                argv0=argv0[:256],
                exit_code=exit_code,
                duration_ms=duration_ms,
                bytes_out=bytes_out,
                bytes_err=bytes_err,
            )

    def ports_seen(self, at: datetime, generation: int, seen_at: datetime, ports: tuple[PortStatus, ...]) -> None:
        """What the node sees of its ports. No news when that is known, older than what is, or was seen of an earlier machine."""
        if generation != self.generation or self.restarting is not None or not LIFECYCLE.admits("ports_seen", self.state):
            return
        now = after(self.ports, ports)
        if now != self.ports and (self.ports_seen_at is None or seen_at > self.ports_seen_at):
            self.record(events.SandboxPortsChanged, at, generation=generation, seen_at=seen_at, ports=now)

    def require_port(self, port: int) -> PortStatus:
        """How it stands with a declared port. Raises ``sandbox.no-port``, and ``sandbox.illegal-state`` for one that has ended."""
        LIFECYCLE.admits("require_port", self.state)
        return require(self.ports, self.spec.recipe, port)

    # ------------------------------------------------------------------------------------------------------- its rules

    def _begins(self, row: str, kind: OperationKind, command_id: str) -> bool:
        """True: go on. False: already so, or this very command is in progress. Raises ``Refused``."""
        busy = self.operation
        if busy is not None and (busy.kind, busy.command) == (kind, command_id):
            return False
        admitted = LIFECYCLE.admits(row, self.state)
        if busy is not None:
            raise Refused(
                "sandbox.illegal-state",
                f"a {busy.kind} of sandbox {self.id} is in progress",
                retryable=True,
                details={"state": self.state.value, "allowed": [], "operation": busy.kind},
            )
        return admitted

    def _begin(self, at: datetime, kind: OperationKind, command_id: str, deadline: datetime, **target: Any) -> None:
        operation = Operation(kind=kind, command=command_id, deadline=deadline, **target)
        self.record(events.SandboxOperationBegun, at, operation=operation)

    def _answered(self, kind: OperationKind, command_id: str) -> bool:
        operation = self.operation or self.expired
        return operation is not None and (operation.kind, operation.command) == (kind, command_id)

    def _rollback_of(self, generation: int) -> Operation | None:
        operation = self.operation or self.expired
        return operation if operation is not None and (operation.kind, operation.generation) == ("rollback", generation) else None

    def _own_reason(self, usual: Reason) -> Reason:
        return "ttl_expired" if self.ttl_action == "delete" else usual
