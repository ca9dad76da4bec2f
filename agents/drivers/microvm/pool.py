"""Waiting machines: QEMU started over a memory and an empty disk, so that a sandbox only has to say go (reference/runtimes.md §11).

A machine waits for the next sandbox that starts from the same memory and over the same disk as one before it. It has run until its guest
was ready to be told what it is, and stands still since then: an emulator has translated what every start needs, which is most of what one
costs. What QEMU has open by then - disk, sockets - is moved to where the sandbox wants it; logs it opens there. One of each kind waits on
hosts that do not miss its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import channel, orders
from agents.drivers.microvm.bounds import Bounds
from agents.drivers.microvm.command import Build
from agents.drivers.microvm.machine import Machine, Place, wake
from agents.drivers.microvm.memory import Memory
from agents.drivers.microvm.together import together
from agents.host import reaper
from agents.network import taps

log = structlog.get_logger(__name__)

_PREFIX: Final = ".waiting-"
_KINDS: Final = 2
"""Of how many kinds machines wait at once: the latest ones that were asked for."""
_EACH_MB: Final = 30
"""What one costs, emulated; under KVM a fifth of it."""
_SHARE: Final = 0.02
"""Of the host's memory that those that nobody has asked for may take."""
_QUIET_S: Final = 0.1
"""No machine is made to wait before nobody has started one for so long: whoever waits comes first."""
_OWN: Final = ("qmp", "agent", "status", "qemu.log")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a waiting machine fits: this memory, and a disk with exactly these bytes, which an empty overlay over the same disk has.

    ``wired``: it has a tap for a network.
    """

    memory: Path
    disk: bytes
    wired: bool

    @classmethod
    def of(cls, memory: Memory, disk: Path, wired: bool) -> Kind:
        return cls(memory.directory, disk.read_bytes(), wired)


@dataclass(frozen=True, slots=True)
class Waiting:
    """``directory`` stays until whoever takes the machine has written it down: by its name one without an owner is found."""

    kind: Kind
    directory: Path
    machine: Machine
    tap: str
    group: str

    def move(self, place: Place, disk: Path) -> Machine | None:
        """Make it the sandbox's, but for its logs; None when it cannot be: it has died, or it is on another file system."""
        place.logs.mkdir(parents=True, exist_ok=True)
        if len({path.stat().st_dev for path in (self.directory, place.directory, disk)}) > 1 or not self.machine.alive:
            return None
        (self.directory / "disk").replace(disk)
        for name in _OWN:
            (self.directory / name).replace(place.directory / name)
        self.machine.directory = place.directory
        return self.machine


@dataclass(frozen=True, slots=True)
class Ready:
    """A machine that has a sandbox's place, and runs when ``go`` has been awaited.

    ``tap``: the name of its end of a network, in this process's own, or empty. ``group``: its control group, or empty. ``kind``: of those
    that shall wait for the next one.
    """

    machine: Machine
    tap: str
    group: str
    go: Callable[[], Awaitable[None]]
    kind: Kind | None


class Pool:
    """``size`` machines wait of each kind; 0: none do. ``mark`` as in ``Place``, of the driver's directory."""

    def __init__(self, directory: Path, mark: str, size: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._directory = directory
        self._mark = mark
        self._size = size
        self._waiting: list[Waiting] = []
        self._taken: set[Path] = set()
        self._wanted: dict[Kind, tuple[Build, Memory]] = {}
        self._filling: asyncio.Task[None] | None = None
        self._asked = 0.0

    def _place(self, token: str) -> Place:
        directory = self._directory / f"{_PREFIX}{token}"
        return Place(directory, directory / "logs", self._marked(token))

    def _marked(self, token: str) -> Mapping[str, str]:
        return {"STRANDLINE_VM": f"{self._mark}{_PREFIX}{token}"}

    @contextlib.asynccontextmanager
    async def machine(self, place: Place, build: Build, memory: Memory, disk: Path, *, wired: bool) -> AsyncIterator[Ready]:
        """A machine for a sandbox, one of those that wait if it fits. Inside the block its owner writes it down."""
        self._asked = time.monotonic()
        kind = Kind.of(memory, disk, wired) if self._size else None
        found = next((one for one in self._waiting if one.kind == kind), None)
        if found is not None:
            self._waiting.remove(found)
        moved = None if found is None else found.move(place, disk)
        if found is None or moved is None:
            made, state_fd, tap = _woken(place, build, memory, disk, wired=wired)
            group = self._bounds.name()
            async with self._bounds.unless_owned(group):
                yield Ready(made, tap, group, lambda: self._run(made, state_fd, memory, group), kind)
            return
        self._taken.add(found.directory)
        try:
            async with self._bounds.unless_owned(found.group):
                yield Ready(moved, found.tap, found.group, lambda: moved.go_on(place.logs), kind)
            shutil.rmtree(found.directory, ignore_errors=True)
        finally:
            self._taken.discard(found.directory)

    def fill(self, kind: Kind | None, build: Build, memory: Memory) -> None:
        """Have machines wait for the next one like the sandbox that has just been started."""
        if kind is None:
            return
        self._asked = time.monotonic()
        self._wanted[kind] = build, memory
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="vm-pool")

    async def _fill(self) -> None:
        while self._wanted:
            while (early := self._asked + _QUIET_S - time.monotonic()) > 0:  # noqa: ASYNC110 - a moment that moves
                await asyncio.sleep(early)
            kind = next(iter(self._wanted))
            build, memory = self._wanted.pop(kind)
            try:
                while sum(found.kind == kind for found in self._waiting) < self._size:
                    self._waiting.append(await self._make(kind, build, memory))
                await self._end_others()
            except (OSError, RuntimeFault) as error:
                log.warning("vm-pool.not-filled", error=repr(error)[:300])

    async def _end_others(self) -> None:
        """Those of kinds that were not asked for lately."""
        kinds = list(dict.fromkeys(found.kind for found in reversed(self._waiting)))
        for old in [found for found in self._waiting if found.kind in kinds[_KINDS:]]:
            self._waiting.remove(old)
            await self._end(old)

    async def _make(self, kind: Kind, build: Build, memory: Memory) -> Waiting:
        """One that has run, and stands still: an emulator has translated by then what every start needs."""
        place = self._place(secrets.token_hex(6))
        place.directory.mkdir(mode=0o700)
        self._taken.add(place.directory)
        try:
            (place.directory / "disk").write_bytes(kind.disk)
            machine, state_fd, tap = _woken(place, build, memory, place.directory / "disk", wired=kind.wired)
            waiting = Waiting(kind, place.directory, machine, tap, self._bounds.name())
            try:
                await self._run(machine, state_fd, memory, waiting.group)
                await machine.guest().ask(channel.PREPARE, channel.fields(orders.prepare()))
                await machine.monitor().execute("stop")
            except BaseException:
                await self._end(waiting)
                raise
        finally:
            self._taken.discard(place.directory)
        return waiting

    async def _run(self, machine: Machine, state_fd: int, memory: Memory, group: str) -> None:
        """Let it go on from its memory, inside its bounds. QEMU gets there while the group is made."""
        await together(machine.load(state_fd), self._bounds.around(group, machine.pid, memory.shape))
        await machine.run()

    async def _end(self, waiting: Waiting) -> None:
        await waiting.machine.kill()
        await self._bounds.remove(waiting.group)
        shutil.rmtree(waiting.directory, ignore_errors=True)

    @property
    def groups(self) -> set[str]:
        """The control groups of those that wait."""
        return {found.group for found in self._waiting}

    async def sweep(self) -> None:
        """End machines that wait for an agent which has died, and those that nobody will ask for: what they started from is deleted."""
        for found in [found for found in self._waiting if not found.kind.memory.exists()]:
            self._waiting.remove(found)
            await self._end(found)
        if self._filling is not None and not self._filling.done():
            return
        own = {found.directory for found in self._waiting} | self._taken
        for path in [path for path in self._directory.glob(f"{_PREFIX}*") if path not in own]:
            await reaper.kill_marked(self._marked(path.name.removeprefix(_PREFIX)), path)
            shutil.rmtree(path, ignore_errors=True)

    async def close(self) -> None:
        """End all that wait."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        for found in [*self._waiting]:
            self._waiting.remove(found)
            await self._end(found)


def _woken(place: Place, build: Build, memory: Memory, disk: Path, *, wired: bool) -> tuple[Machine, int, str]:
    """As ``wake``, and the name of the tap that the machine has. Raises ``network.no-tap``."""
    if not wired:
        return *wake(place, build, memory, disk), ""
    try:
        name, tap = taps.make()
    except OSError as error:
        raise RuntimeFault("network.no-tap", f"no tap for a machine's network: {error}") from error
    try:
        return *wake(place, build, memory, disk, tap), name
    finally:
        os.close(tap)


def size_wanted(memory_mb: int) -> int:
    """How many machines wait of each kind: ``STRAND_VM_WAITING``, else one on a host with so much memory that it does not miss theirs."""
    said = os.environ.get("STRAND_VM_WAITING", "")
    return int(said) if said.isdigit() else int(memory_mb * _SHARE >= _KINDS * _EACH_MB)
