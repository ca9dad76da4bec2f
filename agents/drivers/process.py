"""The process driver: workloads in namespaces of their own, without root, daemon or image machinery. The newcomer's default.

Has what the kernel gives to any user: namespaces, resource limits per process, SIGSTOP. Has no cgroups, so memory and processor of the
whole sandbox are not bounded, and says so by the flags that it lacks (reference/runtimes.md §2, §11).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agents.drivers import gate, inside, streams
from agents.drivers.driver import MAIN, Condition, ExecRequest, ExecResult, Exit, Fault, Handle, Limits, Observed, RuntimeFault, Spec
from agents.drivers.gate import Held
from agents.drivers.identity import check_program, environment, resolve, why_not
from agents.drivers.launchers import Launch, Launcher, bound, bound_all, default_launcher, exit_code, read_info, rlimits
from agents.drivers.nsenter import enter_command
from agents.drivers.statedir import StateDir, spec_to_json
from agents.host import counters, hostname, processes, reaper, spawn
from agents.host.elsewhere import in_network
from agents.host.ports import Listener, Ports

_GONE: Final = Observed(Condition.GONE)
_FLAGS: Final = ("disks", "exec", "live-limits", "pause", "ports", "rlimit-memory", "stream", "usage", "userns")
_END_S: Final = 10.0


class ProcessDriver:
    """``directory`` is the driver's own; ``launcher`` makes the namespaces: bubblewrap where it is installed."""

    name = "process"

    def __init__(self, directory: Path, launcher: Launcher | None = None, starts: int | None = None) -> None:
        self._state = StateDir(directory)
        self._launcher: Launcher = launcher or default_launcher()
        self._starts = asyncio.Semaphore(starts or os.cpu_count() or 1)
        self._ports = Ports()
        self._held: dict[str, Held] = {}
        self.holds = os.geteuid() == 0 and self._launcher.holds  # others may not enter the namespace that the host name is in
        own = ("network",) if os.geteuid() == 0 else ("rlimit-pids",)
        self.flags: tuple[str, ...] = tuple(sorted((*_FLAGS, *own)))

    async def version(self) -> str:
        return f"{self._launcher.name} {await self._launcher.version()}"

    async def check(self) -> list[Fault]:
        return await self._launcher.check()

    # ------------------------------------------------------------------------------------------------------------- start

    async def start(self, spec: Spec) -> Handle:
        if (running := self._state.adopt(spec)) is not None:
            gate.let_go(self._state.of(spec.sandbox_id))  # an agent may have died between the record and this
            return running
        await self.destroy(spec.sandbox_id)  # an older generation, or what a crash left of this one
        async with self._starts:
            try:
                return await self._let_go(await self._begin(spec), spec)
            except BaseException:
                await self.destroy(spec.sandbox_id)
                raise

    async def _begin(self, spec: Spec) -> Held:
        """Everything but the program."""
        who = resolve(spec.root, spec.user)
        env = environment(who, spec.env)
        check_program(spec.root, spec.argv[0], spec.cwd, env["PATH"])
        directory = self._state.create(spec)
        status = directory / "status"
        with streams.Descriptors() as fds:
            stdio = fds.stdio(spec)
            info, info_child = fds.pipe()
            block = fds.keep(gate.make(directory))
            status_fd = fds.keep(os.open(status, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
            order = fds.keep(os.memfd_create("order"))
            argv = self._launcher.command(Launch(spec, who, env, status, info_child, block, status_fd, order))
            marked, keep = spawn.HOST_ENV | self._mark(spec.sandbox_id), (info_child, block, status_fd, order)
            monitor = in_network(spec.netns, lambda: spawn.start(argv, marked, stdio, keep))
            fds.close(info_child)
            state = await self._take_hold(spec, info, monitor)
            return Held(state, os.dup(info))

    async def _let_go(self, held: Held, spec: Spec) -> Handle:
        """It is on record before the program runs."""
        handle = Handle(self.name, spec.sandbox_id, spec.generation, 1, held.state)
        try:
            self._state.write_handle(handle)
            gate.let_go(self._state.of(spec.sandbox_id))
            await self._launcher.executed(held.info, held.first, held.monitor)
        finally:
            held.close()
        self._refuse_failed_execution(handle)
        return handle

    async def _take_hold(self, spec: Spec, info: int, monitor: int) -> dict[str, Any]:
        """Learn who was started, while the workload is still held back."""
        first = (await read_info(info)).get("child-pid")
        seen, watcher = processes.stat(first) if isinstance(first, int) else None, processes.stat(monitor)
        if seen is None or watcher is None:
            raise RuntimeFault("sandbox.start-failed", streams.last_words(spec))
        bound(seen.pid, rlimits(spec))
        return {
            "boot": processes.boot_id(),
            "first": seen.pid,
            "first_started": seen.started,
            "monitor": monitor,
            "monitor_started": watcher.started,
            "namespace": processes.pid_namespace(seen.pid),
            "has_init": self._launcher.has_init,
        }

    async def hold(self, spec: Spec) -> None:
        """See ``CanHold``."""
        async with self._starts:
            try:
                held = self._held[spec.sandbox_id] = await self._begin(spec)
                await self._launcher.at_gate(spec.root, held.first, held.monitor)
            except BaseException:
                await self.destroy(spec.sandbox_id)
                raise

    async def give(self, held: str, spec: Spec) -> Handle | None:
        """See ``CanHold``."""
        found = self._held.get(held)
        if found is None or not processes.alive(*found.monitor):
            await self.destroy(held)
            return None
        renamed = hostname.rename(found.first, spec.hostname)
        await self.destroy(spec.sandbox_id)
        self._state.give(held, spec)
        self._held[spec.sandbox_id] = self._held.pop(held)
        try:
            if isinstance(renamed.exception(), OSError):  # it has died just now
                await self.destroy(spec.sandbox_id)
                return None
            return await self._let_go(self._held.pop(spec.sandbox_id), spec)
        except BaseException:
            await self.destroy(spec.sandbox_id)
            raise

    def _refuse_failed_execution(self, handle: Handle) -> None:
        """The launcher ends with 1 and a line of its own when it cannot execute the program; only then that line is the last one."""
        spec = self._state.spec(handle.sandbox_id)
        if spec is not None and not processes.alive(*self._monitor(handle)) and streams.last_words(spec).startswith("bwrap: "):
            raise RuntimeFault("sandbox.start-failed", streams.last_words(spec))

    def _mark(self, sandbox_id: str) -> dict[str, str]:
        """In the environment of the launcher (not of the workload): finds processes of a start that was never written down."""
        return {"STRANDLINE_SANDBOX": f"{self._state.mark}.{sandbox_id}"}

    # ----------------------------------------------------------------------------------------------------------- observe

    @staticmethod
    def _monitor(handle: Handle) -> tuple[int, int]:
        return handle.state["monitor"], handle.state["monitor_started"]

    @staticmethod
    def _first(handle: Handle) -> tuple[int, int]:
        return handle.state["first"], handle.state["first_started"]

    async def recover(self, handle: Handle) -> Observed:
        return self._observe(handle)

    inspect = recover

    def _observe(self, handle: Handle) -> Observed:
        known = self._state.handle(handle.sandbox_id)
        if known is None or known.generation != handle.generation:
            return _GONE
        if (ended := self._note_exit(known)) is not None:
            return Observed(Condition.EXITED, ended)
        condition = Condition.PAUSED if self._state.has_mark(handle.sandbox_id, "paused") else Condition.RUNNING
        return Observed(condition, pid=known.state["first"])

    def _note_exit(self, handle: Handle) -> Exit | None:
        """How it ended, None while it runs. The monitor ends with the main process; what that leaves behind is killed."""
        if (ended := self._state.exit(handle.sandbox_id)) is not None:
            return ended
        same_boot = handle.state["boot"] == processes.boot_id()
        if same_boot and processes.alive(*self._monitor(handle)):
            return None
        if same_boot and processes.alive(*self._first(handle)):
            processes.send(handle.state["first"], signal.SIGKILL)
        reaper.collect(*self._monitor(handle))
        self._ports.forget(*self._first(handle))
        code = exit_code(self._state.of(handle.sandbox_id) / "status")
        reason = "killed" if self._state.has_mark(handle.sandbox_id, "killed") else "exited" if code is not None else "lost"
        return self._state.write_exit(handle.sandbox_id, Exit(code, reason))

    async def wait(self, handle: Handle) -> Exit:
        while (seen := self._observe(handle)).condition in (Condition.RUNNING, Condition.PAUSED):
            await processes.ended(*self._monitor(handle))
        return seen.exit or Exit(None, "lost")

    async def list(self) -> Mapping[str, Observed]:
        handles = {sandbox_id: self._state.handle(sandbox_id) for sandbox_id in self._state.ids()}
        return {sandbox_id: _GONE if handle is None else self._observe(handle) for sandbox_id, handle in handles.items()}

    # --------------------------------------------------------------------------------------------------------------- act

    def _running(self, handle: Handle, *, paused: bool = False) -> Handle:
        seen = self._observe(handle)
        if seen.condition is Condition.PAUSED and not paused:
            raise RuntimeFault("sandbox.paused", f"{handle.sandbox_id} is paused")
        if seen.condition not in (Condition.RUNNING, Condition.PAUSED):
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        return self._state.handle(handle.sandbox_id) or handle

    async def exec(self, handle: Handle, request: ExecRequest) -> ExecResult:
        known = self._running(handle)
        spec = self._state.spec(handle.sandbox_id)
        if spec is None:
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        who = resolve(spec.root, spec.user)
        if request.user and resolve(spec.root, request.user).uid != who.uid:
            raise RuntimeFault("exec.user-unsupported", f"the sandbox has one user, {who.uid}")
        token = f"STRANDLINE_EXEC={secrets.token_hex(8)}"
        env = environment(who, spec.env, request.env, dict([token.split("=")]))
        if (
            reason := why_not(Path(f"/proc/{known.state['first']}/root"), request.argv[0], request.cwd or spec.cwd, env["PATH"])
        ) is not None:
            return ExecResult(reason[0], b"", f"{reason[1]}\n".encode())
        argv, host_env = enter_command(known.state["first"], request.cwd or spec.cwd, request.argv, env, rlimits(spec))

        def started() -> set[int]:
            return processes.family(processes.members(known.state["namespace"]), lambda pid: processes.carries(pid, token.encode()))

        done = await spawn.run(
            argv,
            env=host_env,
            stdin=request.stdin,
            timeout_s=request.timeout_s,
            max_output=request.max_output,
            on_kill=lambda: processes.kill_all(started),
        )
        return ExecResult(done.code, done.stdout, done.stderr, done.truncated, done.timed_out)

    async def set_limits(self, handle: Handle, limits: Limits) -> None:
        """Memory of each process, and without root their number; of those that run and of those that execs will start."""
        known, spec = self._running(handle, paused=True), self._state.spec(handle.sandbox_id)
        if spec is None:
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        changed = replace(spec, limits=limits)
        await bound_all(lambda: processes.members(known.state["namespace"]), rlimits(changed))
        self._state.write(handle.sandbox_id, "spec", spec_to_json(changed))

    async def give_identity(self, handle: Handle, token: str) -> None:
        inside.give_identity(self._running(handle, paused=True).state["first"], token)

    async def pause(self, handle: Handle) -> None:
        known = self._running(handle, paused=True)
        self._state.set_mark(handle.sandbox_id, "paused", on=True)
        if not await processes.halt_all(lambda: processes.members(known.state["namespace"])):
            raise RuntimeFault("sandbox.pause-failed", f"processes of {handle.sandbox_id} do not stop", retryable=True)

    async def resume(self, handle: Handle) -> None:
        known = self._running(handle, paused=True)
        for pid in processes.members(known.state["namespace"]):
            processes.send(pid, signal.SIGCONT)
        self._state.set_mark(handle.sandbox_id, "paused", on=False)

    async def stop(self, handle: Handle, grace_s: float) -> Exit:
        seen = self._observe(handle)
        if seen.condition not in (Condition.RUNNING, Condition.PAUSED):
            return seen.exit or Exit(None, "lost")
        known = self._state.handle(handle.sandbox_id) or handle
        for pid in self._main(known):
            processes.send(pid, signal.SIGTERM)
        if seen.condition is Condition.PAUSED:
            await self.resume(handle)
        if not await processes.ended(*self._monitor(known), grace_s):
            self._state.set_mark(handle.sandbox_id, "killed", on=True)
            processes.send(known.state["first"], signal.SIGKILL)
            await processes.ended(*self._monitor(known), _END_S)
        return self._observe(handle).exit or Exit(None, "lost")

    @staticmethod
    def _main(handle: Handle) -> Sequence[int]:
        """Who gets SIGTERM: under bwrap's process 1 its oldest child, which is the workload; under ``unshare`` process 1 itself."""
        first = handle.state["first"]
        below = [seen for pid in processes.children(first) if (seen := processes.stat(pid)) is not None]
        return [min(below, key=lambda seen: seen.started).pid] if handle.state["has_init"] and below else [first]

    async def destroy(self, sandbox_id: str) -> None:
        directory = self._state.of(sandbox_id)
        if not directory.exists():
            return
        handle = self._state.handle(sandbox_id)
        if (held := self._held.pop(sandbox_id, None)) is not None:
            held.close()
            handle = Handle(self.name, sandbox_id, 0, 1, held.state)
        if handle is not None and handle.state["boot"] == processes.boot_id():
            await self._kill(handle)
            self._ports.forget(*self._first(handle))
        else:
            await reaper.kill_marked(self._mark(sandbox_id), directory)
        reaper.sweep()
        self._state.remove(sandbox_id)

    async def _kill(self, handle: Handle) -> None:
        """The namespace's first process, and with it all; the monitor then ends by itself, unless it cannot."""
        for (pid, started), patience in ((self._first(handle), 0.0), (self._monitor(handle), 1.0)):
            if patience == 0 or not await processes.ended(pid, started, patience):
                if processes.alive(pid, started):
                    processes.send(pid, signal.SIGKILL)
                if not await processes.ended(pid, started, _END_S):
                    raise RuntimeFault("sandbox.will-not-die", f"process {pid} of {handle.sandbox_id} ignores SIGKILL", retryable=True)
            reaper.collect(pid, started)

    # ----------------------------------------------------------------------------------------------------------- measure

    async def usage(self, handle: Handle) -> Mapping[str, float]:
        known = self._running(handle, paused=True)
        seen = [found for pid in processes.members(known.state["namespace"]) if (found := processes.stat(pid)) is not None]
        return {"cpu_s": sum(s.cpu_s for s in seen), "memory_bytes": sum(s.rss for s in seen), "pids": len(seen)}

    def sample(self, handles: Sequence[Handle]) -> Mapping[str, Mapping[str, counters.Counters]]:
        here = {handle.sandbox_id: handle.state["namespace"] for handle in handles if handle.state["boot"] == processes.boot_id()}
        seen = counters.of_namespaces(frozenset(here.values()))
        return {sandbox_id: {MAIN: seen[namespace]} for sandbox_id, namespace in here.items() if namespace in seen}

    async def listening(self, handle: Handle) -> frozenset[int]:
        return await self._ports.listening(*self._first(self._running(handle, paused=True)))

    async def listeners(self, handle: Handle) -> frozenset[Listener]:
        return await self._ports.listeners(*self._first(self._running(handle, paused=True)))

    async def follow(self, handle: Handle) -> AsyncIterator[tuple[str, bytes]]:
        spec = self._state.spec(handle.sandbox_id)
        if spec is None:
            return
        ended = asyncio.ensure_future(self.wait(handle))
        try:
            async for item in streams.follow(spec.logs, ended):
                yield item
        finally:
            ended.cancel()

    async def close(self) -> None:
        self._ports.close()
        for held in self._held.values():
            held.close()
        self._held.clear()
