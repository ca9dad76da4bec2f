"""What a test might leave on the host: processes, mounts, cgroups, links, tables, loop devices. Compared before and after."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

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


def traces(directory: Path) -> Traces:
    reaper.sweep()
    _bury_adopted()
    marks = tuple(hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8] for path in [*directory.glob("*"), *directory.glob("*/*")])
    return Traces(
        processes=frozenset(_descendants(os.getpid())),
        mounts=frozenset(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {directory}/" in line),
        groups=frozenset(name for name in _groups() if name.split("-")[1] in marks),
        links=frozenset(name for _, name in socket.if_nameindex() if _is_link(name, marks)),
        tables=frozenset(line for line in _tables() if line.endswith(marks)),
        loops=frozenset(str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if _backs(path, directory)),
    )


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
