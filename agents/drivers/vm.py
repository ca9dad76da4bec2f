"""The VM driver: sandboxes as QEMU microVMs, each with a kernel of its own. Needs neither root nor KVM; with KVM it is fast.

A start never boots: it goes on from a saved machine that has booted and waits for a disk (``microvm.bases``), and a restore, a clone and a
rollback go on from the memory of a snapshot in the same way. ``Spec.root`` is a qcow2 overlay. Everything of a machine lies under the
driver's own directory; QEMU outlives the agent, and the next one finds it by pid and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.drivers import streams
from agents.drivers.driver import Condition, ExecRequest, ExecResult, Exit, Fault, Handle, Limits, Observed, RuntimeFault, Spec
from agents.drivers.identity import Who, environment
from agents.drivers.microvm import channel, orders, programs
from agents.drivers.microvm.accel import Verdict, choose
from agents.drivers.microvm.bases import Bases
from agents.drivers.microvm.bounds import Bounds
from agents.drivers.microvm.command import RESUMES, Build, Shape
from agents.drivers.microvm.machine import Machine, Place
from agents.drivers.microvm.memory import Memory
from agents.drivers.microvm.pool import Pool, size_wanted
from agents.drivers.microvm.sampling import sample
from agents.drivers.microvm.saving import save
from agents.drivers.microvm.together import together
from agents.drivers.microvm.wiring import plug
from agents.drivers.statedir import StateDir
from agents.guest import image
from agents.host import processes, reaper
from agents.host.counters import Counters
from agents.network import taps

_GONE: Final = Observed(Condition.GONE)
_LIVING: Final = (Condition.RUNNING, Condition.PAUSED)
_END_S: Final = 2.0
_KILLED: Final = 128 + signal.SIGKILL


class VmDriver:
    """``directory`` is the driver's own; ``guests`` where guest images are kept; ``waiting``: how many machines wait for the next start."""

    name = "vm"
    disk_format = "qcow2"

    def __init__(self, directory: Path, guests: Path | None = None, starts: int | None = None, waiting: int | None = None) -> None:
        self._state = StateDir(directory)
        self._guests = guests or image.shelf()
        self._starts = asyncio.Semaphore(starts or os.cpu_count() or 1)
        self._bases = Bases(self._mark("base"))
        self._bounds = Bounds(self._state.mark)
        size = size_wanted(processes.total_memory_mb()) if waiting is None else waiting
        self._pool = Pool(self._state.directory, self._state.mark, size, self._bounds)
        self._machines: dict[str, Machine] = {}
        self._verdict: Verdict | None = None
        flags = "exec files limits live-limits memory-snapshot pause ports stream usage users own-kernel"
        more = {"network": taps.possible(), "host-limits": self._bounds.possible}
        self.flags: tuple[str, ...] = tuple(sorted([*flags.split(), *(name for name, works in more.items() if works)]))

    def _mark(self, sandbox_id: str) -> dict[str, str]:
        """In QEMU's environment: finds machines whose start was never written down."""
        return {"STRANDLINE_VM": f"{self._state.mark}.{sandbox_id}"}

    # ------------------------------------------------------------------------------------------------------------ itself

    async def version(self) -> str:
        here, accel = await programs.installed(self._guests), (await self.verdict()).accel
        resumes = {Build.here(program.version, accel, "").flag for program in here}
        self.flags = tuple(sorted({*(flag for flag in self.flags if not flag.startswith(RESUMES)), *resumes}))
        return f"qemu {here[0].version}, {accel}"

    @property
    def guest_image(self) -> str:
        """The version of the guest image that new machines get."""
        found = image.current(self._guests)
        return "" if found is None else found.version

    async def verdict(self) -> Verdict:
        """KVM or emulation, and why."""
        if self._verdict is None:
            [own, *_] = await programs.installed(self._guests)
            self._verdict = await choose(await image.ensure(self._guests), self._bases, own.version)
            if self._verdict.accel == "tcg":
                self.flags = tuple(sorted({*self.flags, "emulated"}))
        return self._verdict

    async def check(self) -> list[Fault]:
        """Build the guest image if there is none, and boot a machine if none is saved."""
        try:
            await self._base(Shape.of(Limits(memory_mb=1)))
        except RuntimeFault as fault:
            text, _, mend = str(fault).partition(" (apt-get ")
            return [Fault(text, f"apt-get {mend.rstrip(')')}" if mend else "strandline doctor --for vm")]
        return []

    async def _build(self, guest: image.GuestImage, saved: Build | None = None) -> Build:
        """What machines are made with: by the QEMU that has ``saved`` a memory where that one is here, else by the one for new machines."""
        here = [program.version for program in await programs.installed(self._guests)]
        qemu = saved.qemu if saved is not None and saved.qemu in here else here[0]
        return Build.here(qemu, (await self.verdict()).accel, guest.version)

    async def _base(self, shape: Shape) -> Memory:
        guest = await image.ensure(self._guests)
        return await self._bases.get(guest, await self._build(guest), shape)

    # ------------------------------------------------------------------------------------------------------------- start

    async def start(self, spec: Spec) -> Handle:
        if (running := self._state.adopt(spec)) is not None and self._observe(running) != _GONE:
            return running
        await self.destroy(spec.sandbox_id)  # an older generation, or what a crash left of this one
        environment(Who(), spec.env)
        async with self._starts:
            try:
                return await self._launch(spec)
            except BaseException:
                await self.destroy(spec.sandbox_id)
                raise

    async def _launch(self, spec: Spec) -> Handle:
        memory = await self._origin(spec)
        build = memory.build
        directory = self._state.create(spec)
        place = Place(directory, spec.logs, self._mark(spec.sandbox_id))
        async with self._pool.machine(place, build, memory, spec.root, wired=spec.netns is not None) as ready:
            made = ready.machine
            state = {"boot": processes.boot_id(), "pid": made.pid, "started": made.started, "memory": str(memory.directory)}
            state["cgroup"] = ready.group
            handle = Handle(self.name, spec.sandbox_id, spec.generation, 1, state)
            self._state.write_handle(handle)
        self._machines[spec.sandbox_id] = made
        await together(ready.go(), plug(ready.tap, spec))
        kind = channel.RESTORED if spec.memory else channel.START
        await made.guest().ask(kind, channel.fields(orders.restored(spec, memory) if spec.memory else orders.start(spec)))
        self._state.set_mark(spec.sandbox_id, "started", on=True)
        self._bounds.narrow(ready.group, memory.shape, spec.limits)
        self._pool.fill(ready.kind, build, memory)
        return handle

    async def _origin(self, spec: Spec) -> Memory:
        if spec.memory is None:
            return await self._base(Shape.of(spec.limits))
        memory = Memory.read(spec.memory)
        memory.refuse_other(await self._build(await image.ensure(self._guests), memory.build))
        return memory

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
            return _GONE
        if (ended := self._note_exit(known)) is not None:
            return Observed(Condition.EXITED, ended)
        condition = Condition.PAUSED if self._state.has_mark(handle.sandbox_id, "paused") else Condition.RUNNING
        return Observed(condition, pid=known.state["pid"])

    def _note_exit(self, handle: Handle) -> Exit | None:
        """How it ended, None while it runs. The guest writes it down and switches the machine off."""
        if (ended := self._state.exit(handle.sandbox_id)) is not None:
            return ended
        if handle.state["boot"] == processes.boot_id() and processes.alive(*self._main(handle)):
            return None
        self._forget(handle.sandbox_id)
        qemu = reaper.collect(*self._main(handle))
        code, reason = self._status(handle.sandbox_id)
        if code is None and qemu is not None and qemu > 128:
            code, reason = qemu, "oom" if self._bounds.out_of_memory(handle.state.get("cgroup", "")) else "exited"  # QEMU itself was killed
        if self._state.has_mark(handle.sandbox_id, "killed"):
            code, reason = _KILLED if code is None else code, "killed"
        return self._state.write_exit(handle.sandbox_id, Exit(code, reason))

    def _status(self, sandbox_id: str) -> tuple[int | None, str]:
        with contextlib.suppress(OSError, ValueError):
            code, reason = (self._state.of(sandbox_id) / "status").read_text(encoding="ascii").split()
            return int(code), reason
        return None, "lost"

    async def wait(self, handle: Handle) -> Exit:
        while (seen := self._observe(handle)).condition in _LIVING:
            await processes.ended(*self._main(self._state.handle(handle.sandbox_id) or handle))
        return seen.exit or Exit(None, "lost")

    async def list(self) -> Mapping[str, Observed]:
        await self._pool.sweep()
        handles = {sandbox_id: self._state.handle(sandbox_id) for sandbox_id in self._state.ids()}
        await self._bounds.sweep({handle.state.get("cgroup", "") for handle in handles.values() if handle is not None} | self._pool.groups)
        return {sandbox_id: _GONE if handle is None else self._observe(handle) for sandbox_id, handle in handles.items()}

    # --------------------------------------------------------------------------------------------------------------- act

    def _running(self, handle: Handle, *, paused: bool = True) -> Machine:
        seen = self._observe(handle)
        if seen.condition is Condition.PAUSED and not paused:
            raise RuntimeFault("sandbox.paused", f"{handle.sandbox_id} is paused")
        if seen.condition not in _LIVING:
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        found = self._machines.get(handle.sandbox_id)
        if found is None:
            found = self._machines[handle.sandbox_id] = Machine(self._state.of(handle.sandbox_id), *self._main(handle))
        return found

    def _forget(self, sandbox_id: str) -> None:
        if (found := self._machines.pop(sandbox_id, None)) is not None:
            found.close()

    async def exec(self, handle: Handle, request: ExecRequest) -> ExecResult:
        found = self._running(handle, paused=False)
        spec = self._spec(handle)
        environment(Who(), spec.env, request.env)
        return await found.guest().run(channel.fields(orders.execute(spec, request)), request)

    async def read_file(self, handle: Handle, path: str, most: int) -> bytes:
        return await self._running(handle, paused=False).guest().get(path, most)

    async def write_file(self, handle: Handle, path: str, data: bytes, mode: int = 0o644) -> None:
        await self._running(handle, paused=False).guest().put(path, data, mode)

    def _spec(self, handle: Handle) -> Spec:
        spec = self._state.spec(handle.sandbox_id)
        if spec is None:
            raise RuntimeFault("sandbox.not-running", f"{handle.sandbox_id} does not run")
        return spec

    async def pause(self, handle: Handle) -> None:
        found = self._running(handle)
        self._state.set_mark(handle.sandbox_id, "paused", on=True)
        await found.monitor().execute("stop")

    async def resume(self, handle: Handle) -> None:
        found = self._running(handle)
        await found.monitor().execute("cont")
        self._state.set_mark(handle.sandbox_id, "paused", on=False)

    async def set_limits(self, handle: Handle, limits: Limits) -> None:
        """Raises ``limits.refused`` for more than the machine was made with."""
        found = self._running(handle, paused=False)
        shape = Memory.read(Path(handle.state["memory"])).shape
        if Shape.of(limits).ram_mb > shape.ram_mb or limits.cpu > shape.cpus:
            raise RuntimeFault("limits.refused", f"the machine has {shape.cpus} processors and {shape.ram_mb} MiB and cannot grow")
        self._state.set_mark(handle.sandbox_id, "relimited", on=True)
        await found.guest().ask(channel.LIMITS, orders.limits(limits).encode())
        self._bounds.narrow(handle.state.get("cgroup", ""), shape, limits)

    async def stop(self, handle: Handle, grace_s: float) -> Exit:
        seen = self._observe(handle)
        if seen.condition not in _LIVING:
            return seen.exit or Exit(None, "lost")
        found = self._running(handle)
        with contextlib.suppress(RuntimeFault):
            if seen.condition is Condition.PAUSED:
                await self.resume(handle)
            await self._signal(found, signal.SIGTERM)
        if not await processes.ended(found.pid, found.started, grace_s):
            self._state.set_mark(handle.sandbox_id, "killed", on=True)
            with contextlib.suppress(RuntimeFault):
                await self._signal(found, signal.SIGKILL)
            if not await processes.ended(found.pid, found.started, _END_S):
                await found.kill()
        return self._observe(handle).exit or Exit(None, "lost")

    @staticmethod
    async def _signal(found: Machine, number: int) -> None:
        await found.guest().ask(channel.SIGNAL, struct.pack("<i", number), _END_S)

    async def destroy(self, sandbox_id: str) -> None:
        directory = self._state.of(sandbox_id)
        if not directory.exists():
            return
        self._forget(sandbox_id)
        handle = self._state.handle(sandbox_id)
        if handle is not None and handle.state["boot"] == processes.boot_id():
            await Machine(directory, *self._main(handle)).kill()
            await self._bounds.remove(handle.state.get("cgroup", ""))
        else:
            await reaper.kill_marked(self._mark(sandbox_id), directory)
        reaper.sweep()
        self._state.remove(sandbox_id)

    async def snapshot(self, handle: Handle, memory: Path, disk: Path, *, settled: bool = False) -> Path:
        """See ``CanSnapshot``. A crash in between leaves the machine marked as paused, and adoption lets it go on."""
        seen = self._observe(handle)
        found = self._running(handle, paused=not settled)
        running = seen.condition is Condition.RUNNING
        origin = Memory.read(Path(handle.state["memory"]))
        limits = "" if self._state.has_mark(handle.sandbox_id, "relimited") else orders.limits(self._spec(handle).limits)
        saved = Memory(memory, origin.shape, origin.build, handle.sandbox_id, limits)
        self._state.set_mark(handle.sandbox_id, "paused", on=True)
        try:
            return await save(found, origin, saved, disk, running=running, settled=settled) or self._spec(handle).root
        finally:
            self._state.set_mark(handle.sandbox_id, "paused", on=not running)

    def needs(self, memory: Path) -> str:
        return Memory.read(memory).build.flag

    # ----------------------------------------------------------------------------------------------------------- measure

    async def usage(self, handle: Handle) -> Mapping[str, float]:
        """As the guest counts it; a paused one is asked of the host."""
        found = self._running(handle)
        if self._state.has_mark(handle.sandbox_id, "paused"):
            seen = processes.stat(found.pid)
            return {"cpu_s": seen.cpu_s if seen else 0, "memory_bytes": seen.rss if seen else 0, "pids": 1}
        cpu, memory, pids = (await found.guest().ask(channel.USAGE)).split()
        return {"cpu_s": int(cpu) / 1e6, "memory_bytes": int(memory), "pids": int(pids)}

    def sample(self, handles: Sequence[Handle]) -> Mapping[str, Mapping[str, Counters]]:
        return sample(handles)

    async def listening(self, handle: Handle) -> frozenset[int]:
        found = self._running(handle)
        if self._state.has_mark(handle.sandbox_id, "paused"):
            return frozenset()
        return frozenset(int(word) for word in (await found.guest().ask(channel.PORTS)).split())

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
        await self._pool.close()
        for sandbox_id in [*self._machines]:
            self._forget(sandbox_id)
