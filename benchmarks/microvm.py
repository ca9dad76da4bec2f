"""MicroVMs by the driver alone: restore and rollback, cold and from waiting machines, a snapshot's pause, 20 clones and their memory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

from agents.drivers.driver import Handle, Limits, Spec
from agents.drivers.microvm import channel, saving
from agents.drivers.microvm.command import Build
from agents.drivers.microvm.machine import Place, wake
from agents.drivers.microvm.memory import Memory
from agents.drivers.vm import VmDriver
from agents.host.reaper import become_subreaper
from agents.storage import qcow2
from benchmarks.harness import Budget, Row

KIB = 1024
CLONES = 20


class Desk:
    """A machine that runs, a snapshot of it, and as many more from there as are wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.driver = VmDriver(directory / "driver", waiting=0)
        self.pooled = VmDriver(directory / "pooled", waiting=1)
        self.pauses: list[float] = []
        self.disk = directory / "base.ext4"
        self._number = 0

    def spec(self, name: str, below: Path) -> Spec:
        self._number += 1
        root = self.directory / f"{self._number}.qcow2"
        qcow2.create(root, below)
        logs = self.directory / f"logs-{self._number}"
        return Spec(name, self._number, root, ["/bin/sleep", "1000000"], {}, logs, limits=Limits(1, 128, 64))

    async def start(self) -> Handle:
        """One from a disk with one static program on it."""
        tree = self.directory / "tree" / "bin"
        tree.mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "busybox")
        for name in ("sleep", "true"):
            (tree / name).symlink_to("busybox")
        with self.disk.open("wb") as file:
            file.truncate(32 << 20)
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree.parent), str(self.disk)]
        await (await asyncio.create_subprocess_exec(*command)).wait()
        return await self.driver.start(self.spec("vm-first", self.disk))

    async def save(self, handle: Handle, root: Path) -> tuple[Path, Path]:
        """(memory, frozen disk)"""
        memory = self.directory / f"memory-{self._number}"
        memory.mkdir()
        onward = self.spec("unused", root).root
        with self._timed_pause():
            frozen = await self.driver.snapshot(handle, memory, onward)
        return memory, frozen

    @contextlib.contextmanager
    def _timed_pause(self):
        was = saving._standing_still

        @contextlib.asynccontextmanager
        async def timed(*arguments, **more) -> AsyncIterator[None]:
            began = time.perf_counter()
            async with was(*arguments, **more):
                yield
            self.pauses.append(time.perf_counter() - began)

        saving._standing_still = timed
        try:
            yield
        finally:
            saving._standing_still = was

    async def bare(self, memory: Memory, build: Build, below: Path) -> float:
        """QEMU alone, started over the same memory, until the guest answers."""
        spec = self.spec("bare", below)
        place = Place(self.directory / f"bare-{self._number}", spec.logs, {})
        place.directory.mkdir()
        began = time.perf_counter()
        made, state = wake(place, build, memory, spec.root)
        await made.load(state)
        await made.run()
        await made.guest().ask(channel.PING)
        took = time.perf_counter() - began
        await made.kill()
        return took

    async def close(self) -> None:
        for driver in (self.driver, self.pooled):
            for name in await driver.list():
                await driver.destroy(name)
            await driver.close()


async def took(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def run(*, short: bool = False) -> list[Row]:
    become_subreaper()
    times = 5 if short else 20
    with tempfile.TemporaryDirectory(prefix="strandline-bench-vm-") as directory:
        desk = Desk(Path(directory))
        try:
            return await _measure(desk, times)
        finally:
            await desk.close()


async def _measure(desk: Desk, times: int) -> list[Row]:
    seen: dict[str, list[float]] = {}
    handle = await desk.start()
    root = desk.directory / "1.qcow2"
    for _ in range(max(3, times // 4)):
        memory, root_then = await desk.save(handle, root)
        root = max(desk.directory.glob("*.qcow2"), key=lambda path: int(path.stem))
    origin = Memory.read(memory)
    guest_pss: list[int] = []
    for _ in range(times):
        seen.setdefault("bare", []).append(await desk.bare(origin, origin.build, root_then))
        spec = replace(desk.spec("vm-clone", root_then), memory=memory)
        seen.setdefault("clone", []).append(await took(desk.driver.start(spec)))
        again = replace(desk.spec("vm-clone", root_then), memory=memory)
        seen.setdefault("rollback", []).append(await took(_rollback(desk.driver, again)))
        guest_pss.append(_guest_memory(desk, "vm-clone", memory / "ram"))
        await desk.driver.destroy("vm-clone")
        await _from_pool(desk, memory, root_then, seen)
    clones = await _at_once(desk, memory, root_then)
    bare = statistics.median(seen["bare"]) * 1000
    rows = [
        _row("create from a snapshot", seen["clone"], bare, 60),
        _row("the same, from a waiting machine", seen["waiting"], bare, 25),
        _row("rollback", seen["rollback"], bare, 50),
        _row("rollback, from a waiting machine", seen["rollback waiting"], bare, 50),
        _row("pause of a snapshot", desk.pauses, None, 20),
    ]
    return [*rows, *clones, Row("memory that only one clone has, guest", f"{statistics.median(guest_pss) / KIB:.1f} MiB")]


async def _at_once(desk: Desk, memory: Path, below: Path) -> list[Row]:
    """So many clones of one snapshot, asked for in the same moment; and what one more of them costs the host."""
    specs = [replace(desk.spec(f"vm-{number}", below), memory=memory) for number in range(CLONES)]
    began = time.perf_counter()
    each = sorted(await asyncio.gather(*(took(desk.driver.start(spec)) for spec in specs)))
    spent = time.perf_counter() - began
    pss = statistics.median(_pss(desk.driver._machines[spec.sandbox_id].pid) for spec in specs)
    for spec in specs:
        await desk.driver.destroy(spec.sandbox_id)
    p50, p95 = statistics.median(each) * 1000, each[int(len(each) * 0.95)] * 1000
    return [
        Row(f"{CLONES} clones at once", f"{spent * 1000:.0f} ms, {CLONES / spent:.0f}/s; each p50 {p50:.0f} ms, p95 {p95:.0f} ms"),
        Row(f"memory of one of {CLONES} clones (PSS), guest and QEMU", f"{pss / KIB:.1f} MiB"),
    ]


def _pss(pid: int) -> int:
    """KiB, what is shared divided among those who share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def _rollback(driver: VmDriver, spec: Spec) -> None:
    await driver.destroy(spec.sandbox_id)
    await driver.start(spec)


async def _from_pool(desk: Desk, memory: Path, below: Path, seen: dict[str, list[float]]) -> None:
    """The first one is started cold, and is what makes one wait."""
    waited = bool(desk.pooled._pool._waiting)
    spent = await took(desk.pooled.start(replace(desk.spec("vm-pooled", below), memory=memory)))
    if waited:
        seen.setdefault("waiting", []).append(spent)
    await _filled(desk)
    again = replace(desk.spec("vm-pooled", below), memory=memory)
    seen.setdefault("rollback waiting", []).append(await took(_rollback(desk.pooled, again)))
    await _filled(desk)
    await desk.pooled.destroy("vm-pooled")


async def _filled(desk: Desk) -> None:
    while not desk.pooled._pool._waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _guest_memory(desk: Desk, name: str, ram: Path) -> int:
    """KiB of the guest's memory that this machine has copied for itself (/proc/pid/smaps; what is dirty may be the file's)."""
    total, of_ram = 0, False
    for line in Path(f"/proc/{desk.driver._machines[name].pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            of_ram = str(ram) in line
        elif of_ram and fields[0] == "Anonymous:":
            total += int(fields[1])
    return total


def _row(what: str, taken: list[float], bare: float | None, budget_ms: float) -> Row:
    ordered = sorted(taken)
    p50, p95 = statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.95)] * 1000
    against = "" if bare is None else f"{bare:.0f} ms QEMU alone"
    return Row(what, f"p50 {p50:.0f} ms, p95 {p95:.0f} ms", against, p50, "ms", Budget(budget_ms, "ms"))
