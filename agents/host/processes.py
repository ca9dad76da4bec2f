"""What /proc says of processes: who they are, whether they live, which belong together.

A pid alone names nothing: it is reused. With its start time (clock ticks since boot) and the boot id it names one process for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_KILL_ROUNDS: Final = 200
_HALT_ROUNDS: Final = 100


def total_memory_mb() -> int:
    """What the host has for all of them, in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * PAGE >> 20


@dataclass(frozen=True, slots=True)
class Stat:
    """Some fields of /proc/<pid>/stat. ``started`` in ticks since boot, ``cpu_s`` with that of children waited for, ``rss`` in bytes.

    ``state`` is that of the first of its ``threads``.
    """

    pid: int
    state: str
    ppid: int
    session: int
    started: int
    cpu_s: float
    rss: int
    threads: int = 1


@cache
def boot_id() -> str:
    """New at each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # hot: Path.open costs as much as the read
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the command may contain anything, a ")" included
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        ppid=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu_s=sum(int(field) for field in fields[11:15]) / TICKS_PER_S,
        rss=int(fields[21]) * PAGE,
        threads=int(fields[17]),
    )


def alive(pid: int, started: int) -> bool:
    """Whether that very process still runs; a zombie does not, unless only its first thread has ended yet."""
    seen = stat(pid)
    return seen is not None and seen.started == started and (seen.state not in "ZX" or seen.threads > 1)


def pids() -> Iterator[int]:
    """Every process of this pid namespace at about this moment."""
    for name in os.listdir("/proc"):  # noqa: PTH208  # hot: names are enough
        if name.isdigit():
            yield int(name)


def children(pid: int) -> list[int]:
    """Living and dead children of all threads of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text(encoding="ascii").split()]
    return found


def pid_namespace(pid: int) -> str:
    """The identity of a process's pid namespace, empty when it is gone or not ours to see."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115  # hot, and not a path
    except OSError:
        return ""


def members(namespace: str) -> list[int]:
    """The processes in a pid namespace, those that were entered into it from outside included."""
    return [pid for pid in pids() if pid_namespace(pid) == namespace]


def nested(pid: int) -> bool:
    """Whether a process, possibly a zombie, lives in a pid namespace below ours."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) > 2
    except OSError:
        pass
    return False


def carries(pid: int, variable: bytes) -> bool:
    """Whether ``NAME=value`` was in the environment that a process was started with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123  # hot
            return variable in file.read().split(b"\0")
    except OSError:
        return False


def holds(pid: int, directory: str) -> bool:
    """Whether a process has a file below ``directory`` open. ``directory`` is resolved: the kernel tells real paths."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_below(entry.path, directory) for entry in entries)
    except OSError:
        return False


def _below(link: str, directory: str) -> bool:
    try:
        return os.readlink(link).startswith(f"{directory}/")  # noqa: PTH115  # a magic link
    except OSError:  # closed since
        return False


def family(candidates: Iterable[int], carrier: Callable[[int], bool]) -> set[int]:
    """Those of ``candidates`` that ``carrier`` is true of, with their descendants and everything in a session that one of them leads."""
    seen = {pid: found for pid in candidates if (found := stat(pid)) is not None and found.state not in "ZX"}
    result = {pid for pid in seen if carrier(pid)}
    grown = True
    while grown:
        before = len(result)
        result |= {pid for pid, found in seen.items() if found.ppid in result or found.session in result}
        grown = len(result) > before
    return result


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def kill_all(find: Callable[[], Iterable[int]]) -> bool:
    """SIGKILL what ``find`` finds until it finds nothing more: a fork may win a round, but not all of them."""
    for _ in range(_KILL_ROUNDS):
        found = [pid for pid in find() if (seen := stat(pid)) is not None and seen.state not in "ZX"]
        if not found:
            return True
        for pid in found:
            send(pid, signal.SIGKILL)
        await asyncio.sleep(0.002)
    return False


async def halt_all(find: Callable[[], Iterable[int]]) -> bool:
    """SIGSTOP what ``find`` finds until all of it stands still: a fork may slip through one round."""
    for _ in range(_HALT_ROUNDS):
        moving = [pid for pid in find() if (seen := stat(pid)) is not None and seen.state not in "TtZX"]
        if not moving:
            return True
        for pid in moving:
            send(pid, signal.SIGSTOP)
        await asyncio.sleep(0.001)
    return False


async def ended(pid: int, started: int, timeout_s: float | None = None) -> bool:
    """Wait until that process has ended (it may be a zombie then), also when it is nobody's child here. False: time is up."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not alive(pid, started):
            return True
        return await readable(fd, timeout_s)
    finally:
        os.close(fd)


async def readable(fd: int, timeout_s: float | None = None) -> bool:
    """Wait for a descriptor (a pidfd: for its process's end). False: time is up."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True
