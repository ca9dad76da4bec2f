"""One QEMU process: started so that it outlives the agent, found again by pid and start time, spoken to over its two sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import command, programs, sockets
from agents.drivers.microvm.channel import Guest
from agents.drivers.microvm.command import LOGS, Boot, Build, Shape
from agents.drivers.microvm.memory import Memory
from agents.drivers.microvm.qmp import Monitor
from agents.drivers.streams import Descriptors
from agents.guest import uses
from agents.host import processes, reaper, spawn

C = TypeVar("C", Monitor, Guest)

_LOADED_S: Final = 30.0
_END_S: Final = 10.0
_COMPLAINTS: Final = "qemu.log"


@dataclass(eq=False, slots=True)
class Machine:
    """``directory`` holds its sockets and QEMU's own complaints. Connections are made when they are wanted, and kept."""

    directory: Path
    pid: int
    started: int
    _monitor: Monitor | None = None
    _guest: Guest | None = None

    @property
    def alive(self) -> bool:
        return processes.alive(self.pid, self.started)

    def monitor(self) -> Monitor:
        """Raises ``vm.gone``."""
        if self._monitor is None or not self._monitor.usable:
            self._monitor = _connected(Monitor, self.directory / "qmp", self._monitor)
        return self._monitor

    def guest(self) -> Guest:
        """Raises ``vm.gone``."""
        if self._guest is None or not self._guest.usable:
            self._guest = _connected(Guest, self.directory / "agent", self._guest)
        return self._guest

    async def load(self, state_fd: int) -> None:
        """Have the saved memory that it was started over; it goes on from it with ``run``. Raises ``snapshot.not-loaded``."""
        self.guest()  # before the machine runs: then it never sees its host go and come
        monitor = self.monitor()
        loaded = monitor.when("MIGRATION", lambda data: data["status"] in ("completed", "failed"))
        monitor.send("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        monitor.send("migrate-incoming", uri=f"fd:{state_fd}")
        try:
            async with asyncio.timeout(_LOADED_S):
                status = (await loaded)["status"]
        except (RuntimeFault, TimeoutError):
            status = "lost"
        if status != "completed":
            raise RuntimeFault("snapshot.not-loaded", f"QEMU cannot go on from the memory ({status}): {self.last_words()}")

    async def run(self) -> None:
        """When this returns the guest runs."""
        await self.monitor().execute("cont")

    async def go_on(self, logs: Path) -> None:
        """Let it run again after it has waited, stopped, for a sandbox whose logs are there. It says nothing before it is told whose it is.

        In this order: a port of a machine that stands still cannot be changed, and of one that runs only once.
        """
        monitor = self.monitor()
        said = [monitor.send("cont")]
        for name in LOGS:
            file = {"out": str(logs / name), "append": True}
            said.append(monitor.send("chardev-change", id=name, backend={"type": "file", "data": file}))
        async with asyncio.timeout(_LOADED_S):
            await asyncio.gather(*said)

    def last_words(self) -> str:
        """What QEMU complained of."""
        try:
            return (self.directory / _COMPLAINTS).read_text(errors="replace").strip()[-1000:]
        except OSError:
            return ""

    def close(self) -> None:
        """Let go of it; it runs on."""
        for connection in (self._monitor, self._guest):
            if connection is not None:
                connection.close()

    async def kill(self) -> None:
        """End it at once. Raises ``sandbox.will-not-die``."""
        self.close()
        if self.alive:
            processes.send(self.pid, signal.SIGKILL)
        if not await processes.ended(self.pid, self.started, _END_S):
            raise RuntimeFault("sandbox.will-not-die", f"process {self.pid} ignores SIGKILL", retryable=True)
        reaper.collect(self.pid, self.started)


def _connected(kind: Callable[[Path], C], path: Path, before: C | None) -> C:
    if before is not None:
        before.close()  # of an event loop that has ended
    try:
        return kind(path)
    except OSError as error:
        raise RuntimeFault("vm.gone", f"the machine is gone: {error}", retryable=True) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine's sockets and its logs go, and the environment by which it is found when its start was never written down."""

    directory: Path
    logs: Path
    mark: Mapping[str, str]


def boot(place: Place, build: Build, shape: Shape, ram: Path, kernel: Boot) -> Machine:
    """Start a machine from its kernel, without a disk. It is the caller's to end."""
    with Descriptors() as fds:
        return _spawn(
            place, build, fds, lambda ends: command.arguments(build, shape, ram, place.directory, place.logs, fds=ends, boot=kernel)
        )


def wake(place: Place, build: Build, memory: Memory, disk: Path, tap: int | None = None) -> tuple[Machine, int]:
    """Start a machine that waits for ``load``, and the number that it knows the memory's state by. ``tap`` stays the caller's to close."""
    with Descriptors() as fds:
        state = fds.keep(os.open(memory.state, os.O_RDONLY | os.O_CLOEXEC))
        used = uses.hold(memory.directory)
        held = () if used is None else (fds.keep(used),)
        opened = fds.keep(os.open(disk, os.O_RDWR | os.O_CLOEXEC)), fds.keep(os.open(disk, os.O_RDONLY | os.O_CLOEXEC))

        def argv(ends: tuple[int, int]) -> list[str]:
            return command.arguments(build, memory.shape, memory.ram, place.directory, place.logs, fds=ends, disk=opened, tap=tap)

        return _spawn(place, build, fds, argv, state, *opened, *held, *(() if tap is None else (tap,))), state


def _spawn(place: Place, build: Build, fds: Descriptors, argv: Callable[[tuple[int, int]], list[str]], *keep: int) -> Machine:
    place.logs.mkdir(parents=True, exist_ok=True)
    for name in LOGS:
        fds.keep(os.open(place.logs / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
    qmp, agent = (fds.keep(sockets.listen(place.directory / name).detach()) for name in ("qmp", "agent"))
    nothing = fds.keep(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    complaints = fds.keep(os.open(place.directory / _COMPLAINTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    words = [programs.path_of(build.qemu), *argv((qmp, agent))[1:]]
    try:
        pid = spawn.start(words, {**spawn.HOST_ENV, **place.mark}, (nothing, complaints, complaints), (qmp, agent, *keep))
    except FileNotFoundError as error:
        raise programs.absent(build.qemu) from error
    seen = processes.stat(pid)
    if seen is None:
        raise RuntimeFault("sandbox.start-failed", "QEMU has vanished", retryable=True)
    return Machine(place.directory, seen.pid, seen.started)
