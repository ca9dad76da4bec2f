"""Control groups in the three layouts that hosts have: v1, v2, and v1 beside a v2 without controllers ("hybrid").

Files are read and written directly: a freeze costs 0.1 ms that way and 2.7 ms through the runtime (reference/runtimes.md §1, rule c).
A group is one name at the top of every hierarchy, so that no common parent is left behind by the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from agents.host import processes

MOUNT: Final = Path("/sys/fs/cgroup")
PERIOD_US: Final = 100_000
_V1: Final = ("memory", "cpu", "cpuacct", "pids", "freezer")
_BOUNDING: Final = ("memory", "cpu", "pids")
_SETTLE_S: Final = 2.0


class Layout(StrEnum):
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


def layout(mount: Path = MOUNT) -> Layout:
    """Which layout this process sees now. A hybrid one becomes v1 in a mount namespace that hides its v2 half (``hostns``)."""
    if (mount / "cgroup.controllers").exists():
        return Layout.V2
    if not any((mount / name / "cgroup.procs").exists() for name in _V1):
        return Layout.NONE
    return Layout.HYBRID if (mount / "unified" / "cgroup.controllers").exists() else Layout.V1


def names(prefix: str, mount: Path = MOUNT) -> set[str]:
    """The groups whose name starts with ``prefix``, in any hierarchy."""
    tops = [mount] if layout(mount) is Layout.V2 else [top for top in mount.iterdir() if top.is_dir() and not top.is_symlink()]
    found: set[str] = set()
    for top in tops:
        with contextlib.suppress(OSError):
            found |= {name for name in os.listdir(top) if name.startswith(prefix)}  # noqa: PTH208  # names are enough
    return found


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_s: float
    memory_bytes: int
    pids: int


class Cgroup:
    """One group. A container's runtime makes its own; others ``make`` theirs."""

    def __init__(self, name: str, mount: Path = MOUNT) -> None:
        self.name = name
        self._mount = mount
        self._v2 = layout(mount) is Layout.V2

    def _file(self, controller: str, file: str) -> Path:
        return (self._mount / self.name if self._v2 else self._mount / controller / self.name) / file

    def _number(self, controller: str, file: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(self._file(controller, file).read_text(encoding="ascii"))
        return 0

    def _keyed(self, controller: str, file: str, key: str) -> int:
        with contextlib.suppress(OSError):
            for line in self._file(controller, file).read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        return 0

    def make(self) -> None:
        """In each hierarchy that bounds something. Raises ``OSError``."""
        if self._v2:
            with contextlib.suppress(OSError):  # they are on, or the file that is missing below says that they cannot be
                (self._mount / "cgroup.subtree_control").write_text("+cpu +memory +pids", encoding="ascii")
        for controller in ("",) if self._v2 else _BOUNDING:
            self._file(controller, "").mkdir(exist_ok=True)

    def add(self, pid: int) -> None:
        """A process, with all its threads. Raises ``OSError``."""
        for controller in ("",) if self._v2 else _BOUNDING:
            self._file(controller, "cgroup.procs").write_text(str(pid), encoding="ascii")

    def drop(self) -> None:
        """Take away one that nothing is in."""
        for directory in self._directories():
            with contextlib.suppress(OSError):
                directory.rmdir()

    def exists(self) -> bool:
        return any(True for _ in self._directories())

    def _directories(self) -> Iterator[Path]:
        tops = [self._mount] if self._v2 else sorted(top for top in self._mount.iterdir() if not top.is_symlink())
        yield from (top / self.name for top in tops if (top / self.name).is_dir())

    def members(self) -> set[int]:
        """The processes in it, sub-groups included."""
        found: set[int] = set()
        for directory in self._directories():
            for file in directory.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found |= {int(word) for word in file.read_text(encoding="ascii").split()}
        return found

    def usage(self) -> Usage:
        if self._v2:
            cpu = self._keyed("", "cpu.stat", "usage_usec") / 1e6
            return Usage(cpu, self._number("", "memory.current"), self._number("", "pids.current"))
        cpu = self._number("cpuacct", "cpuacct.usage") / 1e9
        return Usage(cpu, self._number("memory", "memory.usage_in_bytes"), self._number("pids", "pids.current"))

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        return self._keyed("memory", "memory.events" if self._v2 else "memory.oom_control", "oom_kill")

    def limit(self, cpu: float, memory_mb: int, pids: int) -> None:
        """Change its bounds while it runs. ``OSError(EBUSY)``: more memory is in use than the new bound (v1)."""
        quota, memory = max(1000, int(cpu * PERIOD_US)), memory_mb << 20
        if self._v2:
            self._file("", "memory.max").write_text(str(memory), encoding="ascii")
            self._file("", "cpu.max").write_text(f"{quota} {PERIOD_US}", encoding="ascii")
        else:
            self._limit_memory_v1(memory)
            self._file("cpu", "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
        self._file("pids", "pids.max").write_text(str(pids), encoding="ascii")

    def _limit_memory_v1(self, memory: int) -> None:
        """Memory must stay <= memory + swap at each moment, so growing and shrinking need opposite orders."""
        both = self._file("memory", "memory.memsw.limit_in_bytes")
        alone = self._file("memory", "memory.limit_in_bytes")
        order = [both, alone] if memory > int(alone.read_text(encoding="ascii")) else [alone, both]
        for file in order:
            if file.exists():
                file.write_text(str(memory), encoding="ascii")

    def frozen(self) -> bool:
        if self._v2:
            return self._keyed("", "cgroup.events", "frozen") == 1
        with contextlib.suppress(OSError):
            return self._file("freezer", "freezer.state").read_text(encoding="ascii").strip() != "THAWED"
        return False

    async def freeze(self, on: bool) -> None:
        """Stop or continue every process at once. Raises ``TimeoutError`` when the kernel does not get there."""
        wanted = ("1" if on else "0") if self._v2 else ("FROZEN" if on else "THAWED")
        file = self._file("freezer", "cgroup.freeze" if self._v2 else "freezer.state")
        deadline = time.monotonic() + _SETTLE_S
        file.write_text(wanted, encoding="ascii")
        while not self._settled(on):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} did not become {wanted}")
            await asyncio.sleep(0.001)
            file.write_text(wanted, encoding="ascii")  # v1: a fork during FREEZING is only caught by asking again

    def _settled(self, on: bool) -> bool:
        if self._v2:
            return self.frozen() is on
        state = self._file("freezer", "freezer.state").read_text(encoding="ascii").strip()
        return state == ("FROZEN" if on else "THAWED")

    async def remove(self) -> bool:
        """Kill what is in it and remove it everywhere. False: something in it would not die."""
        with contextlib.suppress(OSError, TimeoutError):
            if self.frozen():
                await self.freeze(False)
        if not await processes.kill_all(self.members):
            return False
        for directory in self._directories():
            await _remove_tree(directory)
        return not self.exists()


async def _remove_tree(directory: Path) -> None:
    """Deepest first. EBUSY for a moment after the last process has gone is normal."""
    for path in _below(directory):
        for _ in range(200):
            try:
                path.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    shutil.rmtree(path, ignore_errors=True)  # no cgroup: plain files that crun leaves where the v2 half is hidden
                elif error.errno != errno.EBUSY:
                    raise
                await asyncio.sleep(0.002)
            else:
                break


def _below(directory: Path) -> list[Path]:
    return [*sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True), directory]
