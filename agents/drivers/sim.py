"""The simulator: sandboxes without processes. Ships with the product, for fleets of thousands of nodes in tests, benchmarks and demos.

Keeps every promise of the driver port, its failures included: time, latency and faults are its knobs. A sandbox costs one small object and
one line in a file, so that one process carries tens of thousands, and a new agent process finds what the last one had started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from agents.drivers import streams
from agents.drivers.driver import MAIN, Condition, ExecRequest, ExecResult, Exit, Fault, Handle, Limits, Observed, RuntimeFault, Spec
from agents.drivers.identity import Who, environment, resolve
from agents.drivers.simshell import FOREVER, Outcome, Shell
from agents.drivers.simstate import SimSandbox, SimState
from agents.drivers.statedir import StateDir
from agents.host.counters import Counters

_GONE: Final = Observed(Condition.GONE)
_TERMINATED: Final = 143
_KILLED: Final = 137


class Clock(Protocol):
    """Simulated time: seconds that go on from one agent process to the next."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]: ...


class WallClock:
    """Time as it is outside; ``speed`` 10 makes ten seconds pass in one."""

    def __init__(self, speed: float = 1) -> None:
        self._speed = speed

    def now(self) -> float:
        return time.time() * self._speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


@dataclass(slots=True)
class Knobs:
    """How long things take (simulated seconds) and what goes wrong. May be turned at any time.

    ``fail_start``: that many starts fail before anything happened. ``lose_reply``: that many starts work, and then fail all the same: the
    worst that can happen. ``fail_after_s``: main processes end after that time, with ``fail_code``. ``fail_exec``: that many execs fail.
    ``hang_start``: starts never return. ``ports``: what a sandbox seems to listen on.
    """

    start_s: float = 0
    exec_s: float = 0
    stop_s: float = 0
    destroy_s: float = 0
    fail_start: int = 0
    lose_reply: int = 0
    fail_exec: int = 0
    fail_after_s: float | None = None
    fail_code: int = 1
    hang_start: bool = False
    ports: tuple[int, ...] = ()


class SimDriver:
    """``directory`` holds its memory; ``clock`` and ``knobs`` belong to whoever runs the simulation."""

    name = "sim"
    flags: tuple[str, ...] = ("exec", "limits", "live-limits", "network", "pause", "ports", "stream", "usage", "users")

    def __init__(self, directory: Path, clock: Clock | None = None, knobs: Knobs | None = None) -> None:
        self._ids = StateDir(directory)
        self._state = SimState(directory / "sandboxes.jsonl")
        self._clock: Clock = clock or WallClock()
        self.knobs = knobs or Knobs()
        self._changed: dict[str, asyncio.Event] = {}

    async def version(self) -> str:
        return "sim 1"

    async def check(self) -> list[Fault]:
        return []

    # ------------------------------------------------------------------------------------------------------------- start

    async def start(self, spec: Spec) -> Handle:
        self._ids.of(spec.sandbox_id)
        handle = Handle(self.name, spec.sandbox_id, spec.generation)
        known = self._state.sandboxes.get(spec.sandbox_id)
        if known is not None and known.generation > spec.generation:
            raise RuntimeFault("sandbox.stale-generation", f"generation {known.generation} of {spec.sandbox_id} was started already")
        if known is None or known.generation < spec.generation:
            await self._start_cost()
            self._begin(spec)
        if self.knobs.lose_reply > 0:
            self.knobs.lose_reply -= 1
            raise RuntimeFault("sim.reply-lost", "it was started, but you were not to know", retryable=True)
        return handle

    async def _start_cost(self) -> None:
        if self.knobs.hang_start:
            await asyncio.Event().wait()
        await self._pass(self.knobs.start_s)
        if self.knobs.fail_start > 0:
            self.knobs.fail_start -= 1
            raise RuntimeFault("sim.start-failed", "told to fail", retryable=True)

    async def _pass(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)

    def _begin(self, spec: Spec) -> None:
        now = self._clock.now()
        root = spec.root if spec.root.is_dir() else None
        who = resolve(root, spec.user) if root else Who()
        outcome = Shell(root, environment(who, spec.env), spec.cwd, user=str(who.uid)).run(spec.argv)
        if outcome.code == 127 and outcome.seconds == 0:
            raise RuntimeFault("sandbox.no-such-program", f"{spec.argv[0]}: not found")
        self._log(spec, outcome)
        ends_at = None if outcome.seconds == FOREVER else now + outcome.seconds
        code = outcome.code
        if self.knobs.fail_after_s is not None:
            ends_at, code = now + self.knobs.fail_after_s, self.knobs.fail_code
        limits = (spec.limits.cpu, spec.limits.memory_mb, spec.limits.pids)
        base = (spec.sandbox_id, spec.generation, str(spec.root), str(spec.logs), spec.cwd, spec.user, dict(spec.env), now, limits)
        self._touch(self._state.put(SimSandbox(*base, ends_at=ends_at, code=code, ports=self.knobs.ports)))

    @staticmethod
    def _log(spec: Spec, outcome: Outcome) -> None:
        """A fleet of thousands says nothing and needs no directories for it."""
        for name, data in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
            if data:
                spec.logs.mkdir(parents=True, exist_ok=True)
                with (spec.logs / name).open("ab") as file:
                    file.write(data)

    # ----------------------------------------------------------------------------------------------------------- observe

    def _find(self, sandbox_id: str) -> SimSandbox | None:
        """The sandbox as it is now: what was due to end meanwhile has ended."""
        found = self._state.sandboxes.get(sandbox_id)
        if found is None or found.exit is not None or found.paused_at is not None or found.ends_at is None:
            return found
        return self._end(found, Exit(found.code)) if found.ends_at <= self._clock.now() else found

    def _end(self, sandbox: SimSandbox, ended: Exit) -> SimSandbox:
        return self._touch(self._state.change(sandbox, exit=ended, paused_at=None))

    def _touch(self, sandbox: SimSandbox) -> SimSandbox:
        if (changed := self._changed.pop(sandbox.sandbox_id, None)) is not None:
            changed.set()
        return sandbox

    def _observe(self, handle: Handle) -> Observed:
        found = self._find(handle.sandbox_id)
        if found is None or found.generation != handle.generation:
            return _GONE
        return _seen(found)

    async def recover(self, handle: Handle) -> Observed:
        return self._observe(handle)

    async def inspect(self, handle: Handle) -> Observed:
        return self._observe(handle)

    async def wait(self, handle: Handle) -> Exit:
        while (seen := self._observe(handle)).condition in (Condition.RUNNING, Condition.PAUSED):
            changed = asyncio.ensure_future(self._changed.setdefault(handle.sandbox_id, asyncio.Event()).wait())
            found = self._state.sandboxes[handle.sandbox_id]
            tasks: set[asyncio.Future[Any]] = {changed}
            if found.ends_at is not None and found.paused_at is None:
                tasks.add(asyncio.ensure_future(self._clock.sleep(max(0.001, found.ends_at - self._clock.now()))))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        return seen.exit or Exit(None, "lost")

    async def list(self) -> Mapping[str, Observed]:
        return {name: _seen(found) for name in tuple(self._state.sandboxes) if (found := self._find(name)) is not None}

    # --------------------------------------------------------------------------------------------------------------- act

    def _running(self, handle: Handle, *, paused: bool = False) -> SimSandbox:
        seen, found = self._observe(handle), self._state.sandboxes.get(handle.sandbox_id)
        if found is None or seen.condition not in (Condition.RUNNING, Condition.PAUSED):
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        if seen.condition is Condition.PAUSED and not paused:
            raise RuntimeFault("sandbox.paused", f"{handle.sandbox_id} is paused")
        return found

    async def exec(self, handle: Handle, request: ExecRequest) -> ExecResult:
        found = self._running(handle)
        if self.knobs.fail_exec > 0:
            self.knobs.fail_exec -= 1
            raise RuntimeFault("sim.exec-failed", "told to fail", retryable=True)
        outcome = self._execute(found, request)
        took = outcome.seconds + self.knobs.exec_s
        await self._pass(min(took, request.timeout_s))
        timed_out = took > request.timeout_s
        bound = request.max_output
        truncated = max(len(outcome.stdout), len(outcome.stderr)) > bound
        return ExecResult(_KILLED if timed_out else outcome.code, outcome.stdout[:bound], outcome.stderr[:bound], truncated, timed_out)

    @staticmethod
    def _execute(found: SimSandbox, request: ExecRequest) -> Outcome:
        root = Path(found.root) if Path(found.root).is_dir() else None
        who = resolve(root, request.user or found.user) if root else Who()
        env = environment(who, found.env, request.env)
        cwd = request.cwd or found.cwd
        if root is not None and cwd != "/" and not (root / cwd.lstrip("/")).is_dir():
            return Outcome(126, b"", f"{cwd}: no such directory\n".encode())
        return Shell(root, env, cwd, request.stdin, str(who.uid)).run(request.argv)

    async def pause(self, handle: Handle) -> None:
        found = self._running(handle, paused=True)
        if found.paused_at is None:
            self._touch(self._state.change(found, paused_at=self._clock.now()))

    async def resume(self, handle: Handle) -> None:
        """Time goes on where it stopped."""
        found = self._running(handle, paused=True)
        if found.paused_at is not None:
            ends_at = None if found.ends_at is None else found.ends_at + self._clock.now() - found.paused_at
            self._touch(self._state.change(found, paused_at=None, ends_at=ends_at))

    async def set_limits(self, handle: Handle, limits: Limits) -> None:
        self._state.change(self._running(handle, paused=True), limits=(limits.cpu, limits.memory_mb, limits.pids))

    async def stop(self, handle: Handle, grace_s: float) -> Exit:
        """A main process obeys SIGTERM after ``stop_s``, or is killed when that is longer than the grace."""
        if self._observe(handle).condition in (Condition.RUNNING, Condition.PAUSED):
            await self._pass(min(self.knobs.stop_s, grace_s))
            found = self._find(handle.sandbox_id)
            if found is not None and found.exit is None:
                self._end(found, Exit(_TERMINATED) if self.knobs.stop_s <= grace_s else Exit(_KILLED, "killed"))
        return self._observe(handle).exit or Exit(None, "lost")

    async def destroy(self, sandbox_id: str) -> None:
        self._ids.of(sandbox_id)
        found = self._state.sandboxes.get(sandbox_id)
        if found is not None:
            await self._pass(self.knobs.destroy_s)
            self._state.drop(sandbox_id)
            self._touch(found)

    # ----------------------------------------------------------------------------------------------------------- measure

    async def usage(self, handle: Handle) -> Mapping[str, float]:
        found = self._running(handle, paused=True)
        return {"cpu_s": _cpu_s(found, self._clock.now()), "memory_bytes": float(1 << 20), "pids": 1}

    def sample(self, handles: Sequence[Handle]) -> Mapping[str, Mapping[str, Counters]]:
        now = self._clock.now()
        found = (self._state.sandboxes.get(handle.sandbox_id) for handle in handles)
        return {one.sandbox_id: {MAIN: Counters(round(_cpu_s(one, now) * 1e6), memory=1 << 20, pids=1)} for one in found if one is not None}

    async def listening(self, handle: Handle) -> frozenset[int]:
        return frozenset(self._running(handle, paused=True).ports)

    async def follow(self, handle: Handle) -> AsyncIterator[tuple[str, bytes]]:
        found = self._state.sandboxes.get(handle.sandbox_id)
        if found is None:
            return
        ended = asyncio.ensure_future(self.wait(handle))
        try:
            async for item in streams.follow(Path(found.logs), ended):
                yield item
        finally:
            ended.cancel()

    async def close(self) -> None:
        self._state.close()


def _cpu_s(found: SimSandbox, now: float) -> float:
    """A hundredth of a core, while it is not paused."""
    return 0.01 * max(0.0, (found.paused_at if found.paused_at is not None else now) - found.started_at)


def _seen(found: SimSandbox) -> Observed:
    if found.exit is not None:
        return Observed(Condition.EXITED, found.exit)
    return Observed(Condition.RUNNING if found.paused_at is None else Condition.PAUSED)
