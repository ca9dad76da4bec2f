"""The OCI driver: containers by crun, with limits, seccomp, freezer, users and a network of their own. Needs root.

Everything of it lies under its own directory, and every container and cgroup carries a short digest of that directory's name, so that
several agents share a host. Exits are seen by the agent itself, which has to be child subreaper: the runtime is gone by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.drivers import inside, ocispec, streams
from agents.drivers.crun import Runtime, find, mark
from agents.drivers.driver import MAIN, Condition, ExecRequest, ExecResult, Exit, Fault, Handle, Limits, Observed, RuntimeFault, Spec
from agents.drivers.identity import check_program, environment, resolve, why_not
from agents.drivers.ocicheck import check
from agents.drivers.stage import Stage
from agents.drivers.statedir import StateDir
from agents.host import cgroups, counters, hostname, idmap, processes, reaper, spawn
from agents.host.ports import Listener, Ports

_GONE: Final = Observed(Condition.GONE)
_END_S: Final = 10.0
_KILLED: Final = 128 + signal.SIGKILL
_LIVING: Final = (Condition.RUNNING, Condition.PAUSED)


class OciDriver:
    """``directory`` is the driver's own; ``runtime`` names another program with crun's command line."""

    name = "oci"

    def __init__(self, directory: Path, runtime: str = "crun", starts: int | None = None) -> None:
        self._state = StateDir(directory)
        self._prefix = f"strandline-{self._state.mark}-"
        self._runtime = Runtime(find(runtime) or runtime, self._state.directory / ".runtime")
        self._starts = asyncio.Semaphore(starts or os.cpu_count() or 1)
        self._ports = Ports()
        self._swap = (cgroups.MOUNT / "memory" / "memory.memsw.limit_in_bytes").exists() or cgroups.layout() is cgroups.Layout.V2
        flags = "disks exec limits live-limits network pause ports seccomp stream usage users"
        self.flags: tuple[str, ...] = tuple(flags.split()) if os.geteuid() == 0 else ()
        self.ids = 0
        self.holds = os.geteuid() == 0
        self._held: dict[str, tuple[int, int]] = {}
        self._stage = Stage.beside(self._state.directory, Path(self._runtime.program))

    async def version(self) -> str:
        return await self._runtime.version()

    async def check(self) -> list[Fault]:
        """Also learns whether containers here can have users of their own: then ``ids`` and the flag ``userns`` say so."""
        faults = await check(self._runtime, self._state.directory)
        ids = idmap.range_of(self._state.mark)
        if not faults and self._stage is not None and await asyncio.to_thread(idmap.overlay_works, self._state.directory, ids):
            lacking = await check(self._runtime, self._state.directory, ids, self._stage)
            self.ids = 0 if lacking else ids
            self.flags = tuple(sorted({*self.flags, *(() if lacking else ("userns",))}))
        return faults

    def _container(self, sandbox_id: str) -> str:
        """The runtime's name for it: that under which it was made, where it was held first."""
        said = self._state.read(sandbox_id, "container")
        return self._prefix + (sandbox_id if said is None else said["name"])

    def _cgroup(self, sandbox_id: str) -> cgroups.Cgroup:
        return cgroups.Cgroup(self._container(sandbox_id))

    # ------------------------------------------------------------------------------------------------------------- start

    async def start(self, spec: Spec) -> Handle:
        if (running := self._state.adopt(spec)) is not None and self._observe(running) != _GONE:
            return running
        await self.destroy(spec.sandbox_id)  # an older generation, or what a crash left of this one
        async with self._starts:
            try:
                return await self._let_go(await self._make(spec), spec)
            except BaseException:
                await self.destroy(spec.sandbox_id)
                raise

    async def _make(self, spec: Spec) -> tuple[int, int]:
        """The container, whose first process waits; its pid, and since when there is such a process."""
        who = resolve(spec.root, spec.user)
        env = environment(who, spec.env)
        check_program(spec.root, spec.argv[0], spec.cwd, env["PATH"])
        bundle = self._state.create(spec)
        container = self._container(spec.sandbox_id)
        with streams.Descriptors() as fds, self._shown(spec, container) as (shown, within):
            config = ocispec.config(shown, who, env, container, swap=self._swap)
            self._state.write(spec.sandbox_id, "config", config)
            stdio = fds.stdio(spec)
            for fd in stdio:
                os.fchown(fd, spec.ids + who.uid, spec.ids + who.gid)  # so that it may open /dev/stdout again
            held = fds.keep(os.open(bundle / "starting", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))  # see reaper.kill_marked
            pid = await self._runtime.create(container, bundle, stdio, within, held)
        seen = processes.stat(pid)
        if seen is None:
            raise RuntimeFault("sandbox.start-failed", "the container's first process has vanished", retryable=True)
        return pid, seen.started

    async def _let_go(self, first: tuple[int, int], spec: Spec) -> Handle:
        container, (pid, started) = self._container(spec.sandbox_id), first
        state = {"boot": processes.boot_id(), "container": container, "pid": pid, "started": started}
        handle = Handle(self.name, spec.sandbox_id, spec.generation, 1, state)
        self._state.write_handle(handle)
        await self._runtime.start(container, self._state.of(spec.sandbox_id), pid)
        self._state.set_mark(spec.sandbox_id, "started", on=True)
        return handle

    async def hold(self, spec: Spec) -> None:
        """See ``CanHold``."""
        async with self._starts:
            try:
                self._held[spec.sandbox_id] = await self._make(spec)
            except BaseException:
                await self.destroy(spec.sandbox_id)
                raise

    async def give(self, held: str, spec: Spec) -> Handle | None:
        """See ``CanHold``."""
        first = self._held.pop(held, None)
        if first is None or not processes.alive(*first):
            await self.destroy(held)
            return None
        renamed = hostname.rename(first[0], spec.hostname)
        await self.destroy(spec.sandbox_id)
        try:
            self._state.write(held, "container", {"name": held})
            self._state.give(held, spec)
            if isinstance(renamed.exception(), OSError):  # it has died just now
                await self.destroy(spec.sandbox_id)
                return None
            return await self._let_go(first, spec)
        except BaseException:
            await self.destroy(held)
            await self.destroy(spec.sandbox_id)
            raise

    @contextlib.contextmanager
    def _shown(self, spec: Spec, container: str) -> Iterator[tuple[Spec, spawn.Within | None]]:
        """The specification with what the runtime can find of it, and in what surroundings it has to be started for that."""
        if self._stage is None or not spec.ids:
            yield spec, None
            return
        with self._stage.showing(spec, container) as shown:
            yield shown

    # ----------------------------------------------------------------------------------------------------------- observe

    @staticmethod
    def _main(handle: Handle) -> tuple[int, int]:
        return handle.state["pid"], handle.state["started"]

    async def recover(self, handle: Handle) -> Observed:
        return self._observe(handle)

    async def inspect(self, handle: Handle) -> Observed:
        return self._observe(handle)

    def _observe(self, handle: Handle) -> Observed:
        known = self._state.handle(handle.sandbox_id)
        if known is None or known.generation != handle.generation or not self._state.has_mark(handle.sandbox_id, "started"):
            return _GONE  # created but never started: nothing of the workload has ever run
        if (ended := self._note_exit(known)) is not None:
            return Observed(Condition.EXITED, ended)
        frozen = self._cgroup(handle.sandbox_id).frozen()
        return Observed(Condition.PAUSED if frozen else Condition.RUNNING, pid=known.state["pid"])

    def _note_exit(self, handle: Handle) -> Exit | None:
        """How it ended, None while it runs. With the first process of a pid namespace all others have ended."""
        if (ended := self._state.exit(handle.sandbox_id)) is not None:
            return ended
        if handle.state["boot"] == processes.boot_id() and processes.alive(*self._main(handle)):
            return None
        self._ports.forget(*self._main(handle))
        code = reaper.collect(*self._main(handle))
        return self._state.write_exit(handle.sandbox_id, Exit(code, self._reason(handle.sandbox_id, code)))

    def _reason(self, sandbox_id: str, code: int | None) -> str:
        if self._state.has_mark(sandbox_id, "killed"):
            return "killed"
        if code in (None, _KILLED) and self._cgroup(sandbox_id).oom_kills() > 0:
            return "oom"
        return "lost" if code is None else "exited"

    async def wait(self, handle: Handle) -> Exit:
        while (seen := self._observe(handle)).condition in _LIVING:
            await processes.ended(*self._main(self._state.handle(handle.sandbox_id) or handle))
        return seen.exit or Exit(None, "lost")

    async def list(self) -> Mapping[str, Observed]:
        """Also what has no handle: a start that was cut short, or a cgroup whose directory is gone."""
        handles = {sandbox_id: self._state.handle(sandbox_id) for sandbox_id in self._state.ids()}
        named = {self._container(sandbox_id) for sandbox_id in handles}
        orphans = {name.removeprefix(self._prefix): None for name in set(cgroups.names(self._prefix)) - named}
        return {sandbox_id: _GONE if handle is None else self._observe(handle) for sandbox_id, handle in (orphans | handles).items()}

    # --------------------------------------------------------------------------------------------------------------- act

    def _running(self, handle: Handle) -> tuple[Handle, Spec]:
        known, spec = self._state.handle(handle.sandbox_id), self._state.spec(handle.sandbox_id)
        if known is None or spec is None or self._observe(handle).condition not in _LIVING:
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        return known, spec

    async def exec(self, handle: Handle, request: ExecRequest) -> ExecResult:
        known, spec = self._running(handle)
        group = self._cgroup(handle.sandbox_id)
        if group.frozen():
            raise RuntimeFault("sandbox.paused", f"{handle.sandbox_id} is paused")
        root = Path(f"/proc/{known.state['pid']}/root")
        who = resolve(root, request.user or spec.user)
        token = secrets.token_hex(8)
        env = environment(who, spec.env, request.env, {"STRANDLINE_EXEC": token})
        cwd = request.cwd or spec.cwd
        if (reason := why_not(root, request.argv[0], cwd, env["PATH"])) is not None:
            return ExecResult(reason[0], b"", f"{reason[1]}\n".encode())
        variable = f"STRANDLINE_EXEC={token}".encode()

        async def kill() -> None:
            """With everything else standing still, nothing can be missed."""
            with contextlib.suppress(OSError, TimeoutError):
                await group.freeze(True)
            for pid in processes.family(group.members(), lambda pid: processes.carries(pid, variable)):
                processes.send(pid, signal.SIGKILL)
            with contextlib.suppress(OSError, TimeoutError):
                await group.freeze(False)

        process = ocispec.process(request.argv, env, cwd, who)
        owner = (spec.ids + who.uid, spec.ids + who.gid)
        done = await self._runtime.exec(
            known.state["container"], process, request.stdin, request.timeout_s, request.max_output, kill, owner
        )
        return ExecResult(done.code, done.stdout, done.stderr, done.truncated, done.timed_out)

    async def give_identity(self, handle: Handle, token: str) -> None:
        known, spec = self._running(handle)
        inside.give_identity(known.state["pid"], token, spec.ids)

    async def pause(self, handle: Handle) -> None:
        await self._freeze(handle, on=True)

    async def resume(self, handle: Handle) -> None:
        await self._freeze(handle, on=False)

    async def _freeze(self, handle: Handle, *, on: bool) -> None:
        self._running(handle)
        try:
            await self._cgroup(handle.sandbox_id).freeze(on)
        except (OSError, TimeoutError) as error:
            raise RuntimeFault("sandbox.pause-failed", str(error), retryable=True) from error

    async def set_limits(self, handle: Handle, limits: Limits) -> None:
        self._running(handle)
        try:
            self._cgroup(handle.sandbox_id).limit(limits.cpu, limits.memory_mb, limits.pids)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RuntimeFault("limits.in-use", "more memory is in use than the new limit allows", retryable=True) from error
            raise RuntimeFault("limits.refused", str(error)) from error

    async def stop(self, handle: Handle, grace_s: float) -> Exit:
        known = self._state.handle(handle.sandbox_id)
        if known is None or self._observe(handle).condition not in _LIVING:
            return self._observe(handle).exit or Exit(None, "lost")
        processes.send(known.state["pid"], signal.SIGTERM)
        group = self._cgroup(handle.sandbox_id)
        if group.frozen():
            await group.freeze(False)
        if not await processes.ended(*self._main(known), grace_s):
            self._state.set_mark(handle.sandbox_id, "killed", on=True)
            processes.send(known.state["pid"], signal.SIGKILL)
            await processes.ended(*self._main(known), _END_S)
        return self._observe(handle).exit or Exit(None, "lost")

    async def destroy(self, sandbox_id: str) -> None:
        """By name alone: the runtime's memory, the cgroup and our directory are looked at each for itself."""
        self._held.pop(sandbox_id, None)
        container = self._container(sandbox_id)
        group = self._cgroup(sandbox_id)
        if not (self._state.of(sandbox_id).exists() or group.exists() or (self._runtime.root / container).exists()):
            return
        if not self._state.has_mark(sandbox_id, "started"):
            await reaper.kill_marked(mark(container), self._state.of(sandbox_id))
        if not await group.remove():
            raise RuntimeFault("sandbox.will-not-die", f"a process of {sandbox_id} ignores SIGKILL", retryable=True)
        handle = self._state.handle(sandbox_id)
        if handle is not None:
            self._ports.forget(*self._main(handle))
            await processes.ended(*self._main(handle), _END_S)  # it leaves its cgroup a moment before it is a zombie
            reaper.collect(*self._main(handle))
        self._runtime.forget(container)
        reaper.sweep()
        self._state.remove(sandbox_id)

    # ----------------------------------------------------------------------------------------------------------- measure

    async def usage(self, handle: Handle) -> Mapping[str, float]:
        self._running(handle)
        seen = self._cgroup(handle.sandbox_id).usage()
        return {"cpu_s": seen.cpu_s, "memory_bytes": seen.memory_bytes, "pids": seen.pids}

    def sample(self, handles: Sequence[Handle]) -> Mapping[str, Mapping[str, counters.Counters]]:
        groups = {handle.sandbox_id: handle.state["container"] for handle in handles}
        seen = counters.of_groups(groups.values())
        return {sandbox_id: {MAIN: seen[group]} for sandbox_id, group in groups.items() if group in seen}

    async def listening(self, handle: Handle) -> frozenset[int]:
        known, _ = self._running(handle)
        return await self._ports.listening(*self._main(known))

    async def listeners(self, handle: Handle) -> frozenset[Listener]:
        known, _ = self._running(handle)
        return await self._ports.listeners(*self._main(known))

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
        if self._stage is not None:
            self._stage.close()
