"""What a test might leave on the host: processes, mounts, cgroups, links, tables, loop devices. Compared before and after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from support import waiting

from agents.host import cgroups, processes, reaper


@dataclass(frozen=True, slots=True)
class Traces:
    """Everything on the host that belongs to ``directory`` or descends from this process."""

    processes: frozenset[str]
    mounts: frozenset[str]
    groups: frozenset[str]
    links: frozenset[str]
    tables: frozenset[str]
    loops: frozenset[str]

    def beyond(self, before: Traces) -> dict[str, frozenset[str]]:
        """What is there now and was not; empty when nothing was left."""
        grown = {name: getattr(self, name) - getattr(before, name) for name in self.__slots__}
        return {name: more for name, more in grown.items() if more}


_remembered: set[str] = set()
"""Marks of folders that were seen in this run: names on the host outlive the folders that they were made from."""
_NAMING = ("network", "driver", "*/network", "*/driver", "nodes/*/network", "nodes/*/drivers/*", "*/nodes/*/network", "*/nodes/*/drivers/*")
"""Where the folders are, below a test's own, whose paths go into the names of links, tables and control groups."""


def remember(directory: Path) -> None:
    """Note the folders that are there now, before they are removed."""
    _remembered.update(_mark(path) for pattern in _NAMING for path in directory.glob(pattern))


def traces(directory: Path) -> Traces:
    """What belongs to one test's own folder.

    Links bear four characters of a mark only, so that every folder too many may be taken for one of another run: a root's are none.
    """
    folders = (
        path for path in [*directory.glob("*"), *directory.glob("*/*")] if path.is_dir() and path.relative_to(directory).parts[0] != "root"
    )
    return _traces(directory, tuple(_mark(path) for path in folders))


def of_run(base: Path) -> Traces:
    """What belongs to this run of the tests, which keeps its folders in ``base``; not what other runs on this host have."""
    mine = _traces(base, tuple(_remembered))
    strays = frozenset(f"{pid} {_command(pid)}" for pid in processes.pids() if pid not in _ancestors() and _names(pid, f"{base}/"))
    return replace(mine, processes=mine.processes | strays)


def left(look: Callable[[], Traces], before: Traces) -> dict[str, frozenset[str]]:
    """What is there now and was not before: in the end, for what was killed last may still be on its way out."""

    async def gone() -> dict[str, frozenset[str]]:
        with contextlib.suppress(AssertionError):
            await waiting.eventually(lambda: look().beyond(before) == {}, 5)
        return look().beyond(before)

    return waiting.run(gone())


def _traces(directory: Path, marks: tuple[str, ...]) -> Traces:
    reaper.sweep()
    _bury_adopted()
    return Traces(
        processes=frozenset(_descendants(os.getpid())),
        mounts=frozenset(line for line in _mounts() if f" {directory}/" in line),
        groups=frozenset(name for name in _groups() if name.split("-")[1] in marks),
        links=frozenset(name for _, name in socket.if_nameindex() if _is_link(name, marks)),
        tables=frozenset(line for line in _tables() if line.endswith(marks)),
        loops=frozenset(str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if _backs(path, directory)),
    )


def _mark(path: Path) -> str:
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]


def _mounts() -> set[str]:
    """Of this process and of the host: an agent's namespace may be another one than ours."""
    found: set[str] = set()
    for who in ("self", "1"):
        with contextlib.suppress(OSError):
            found |= set(Path(f"/proc/{who}/mounts").read_text().splitlines())
    return found


def _ancestors() -> set[int]:
    """This process and those that it descends from: a shell's command line may well name our folder."""
    found, pid = set(), os.getpid()
    while pid > 0 and (seen := processes.stat(pid)) is not None:
        found.add(pid)
        pid = seen.ppid
    return found


def _names(pid: int, text: str) -> bool:
    """Whether a process works on a path: in its command line, or as its working directory."""
    try:
        return text in _command(pid) or text in f"{Path(f'/proc/{pid}/cwd').readlink()}/"
    except OSError:
        return False


def _bury_adopted() -> None:
    """What PID 1 would do for the children of an agent that was killed: here they come to us."""
    for child in processes.children(os.getpid()):
        if (seen := processes.stat(child)) is not None and seen.state == "Z":
            os.waitpid(child, 0)


def _groups() -> set[str]:
    return cgroups.names("strandline-") if cgroups.layout() is not cgroups.Layout.NONE else set()


def _is_link(name: str, marks: tuple[str, ...]) -> bool:
    return any(name == f"slb{mark}" or (name.startswith(f"sl{mark[:4]}") and len(name) == 15) for mark in marks)


def _descendants(pid: int) -> list[str]:
    found = []
    for child in processes.children(pid):
        seen = processes.stat(child)
        if seen is not None:
            found.append(f"{child} {seen.started} {seen.state if seen.state == 'Z' else ''} {_command(child)}")
            found += _descendants(child)
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _tables() -> list[str]:
    if os.geteuid() != 0 or shutil.which("nft") is None:
        return []
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if "strandline_" in line]


def _backs(path: Path, directory: Path) -> bool:
    try:
        return str(directory) in path.read_text()
    except OSError:
        return False
