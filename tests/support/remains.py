"""What an installation left on the host after it was purged, found without its help: by its directory's name, and by names made from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agents.host import cgroups, processes


def remains(directory: Path, nodes: int = 1) -> list[str]:
    """Files, processes, mounts, control groups, links and tables of the installation in ``directory``; empty when nothing is left."""
    own = [directory / "nodes" / f"node-{n}" for n in range(1, nodes + 1)]
    parts = [part for node in own for part in (node / "drivers" / "oci", node / "drivers" / "process", node / "network")]
    marks = tuple(hashlib.sha256(str(part.resolve()).encode()).hexdigest() for part in parts)
    return [*_files(directory), *_processes(directory), *_mounts(directory), *_groups(marks), *_links(marks), *_tables(marks)]


def of_sandboxes(node: Path) -> list[str]:
    """What of sandboxes a node, whose agent does not run, has on the host: processes, mounts, network namespaces, links, control groups.

    Not its artifacts, which are mounted as long as it has them, nor its bridge and table, which wait for the next sandbox.
    """
    marks = _marks(node)
    mounts = [
        line for line in _mounts(node) if f"{node}/storage/artifacts/" not in line.split(" lowerdir=")[0] and line.split()[2] != str(node)
    ]
    links = [line for line in _links(marks) if not line.startswith("link slb")]
    return [*_processes(node), *mounts, *_groups(marks), *links]


def power_cut(node: Path) -> None:
    """Take from the host, whose agent was killed, what does not outlive a machine: processes, mounts, control groups, links, tables."""
    marks = _marks(node)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # nobody sees another one end
        for pid in _pids(node, marks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    while _pids(node, marks):  # each was told, and none can refuse
        pass
    for line in reversed(list(_mounts(node))):
        subprocess.run(["umount", "-l", line.split()[2]], check=True)
    for line in _links(marks):
        subprocess.run(["ip", "link", "delete", line.split()[1]], check=False, stderr=subprocess.DEVNULL)  # one of a pair takes the other
    for line in _tables(marks):
        subprocess.run(["nft", "delete", *line.split()[1:]], check=True)
    assert list(_groups(marks)) == [], "no driver with control groups is cut off like this yet"


def _pids(node: Path, marks: tuple[str, ...]) -> list[int]:
    """Of its processes, those too that only their environment gives away: who watches over a sandbox."""
    marked = [pid for pid in processes.pids() if any(f"={mark[:8]}." in _environment(pid) for mark in marks)]
    return [*(int(line.split()[1]) for line in _processes(node)), *marked]


def _environment(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return ""


def _marks(node: Path) -> tuple[str, ...]:
    parts = [*(node / "drivers").glob("*"), node / "network"]
    return tuple(hashlib.sha256(str(part.resolve()).encode()).hexdigest() for part in parts)


def running(directory: Path) -> list[str]:
    """What of it still runs: processes and control groups."""
    return [line for line in remains(directory) if line.startswith(("process ", "cgroup "))]


def _files(directory: Path) -> Iterator[str]:
    if directory.exists():
        yield from (f"file {path}" for path in [directory, *directory.rglob("*")][:20])


def _processes(directory: Path) -> Iterator[str]:
    """Whose command line, environment, folders or root file system name the directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        seen = processes.stat(int(entry.name))
        if seen is None or seen.state == "Z":
            continue
        with contextlib.suppress(OSError):
            links = [str((entry / name).readlink()) for name in ("cwd", "root", "exe")]
            texts = [*((entry / name).read_text(errors="replace") for name in ("cmdline", "environ")), _root(entry)]
            line = texts[0].replace("\0", " ")
            if any(str(directory) in text for text in [*links, *texts]) and "pytest" not in line:
                yield f"process {entry.name} {line}"


def _root(process: Path) -> str:
    """What a process has mounted on ``/``."""
    lines = (process / "mountinfo").read_text(errors="replace").splitlines()
    return "".join(line for line in lines if line.split()[4] == "/")


def _mounts(directory: Path) -> Iterator[str]:
    yield from (f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line)


def _groups(marks: tuple[str, ...]) -> Iterator[str]:
    if cgroups.layout() is not cgroups.Layout.NONE:
        yield from (f"cgroup {name}" for name in cgroups.names("strandline-") if name.split("-")[1] in {mark[:8] for mark in marks})


def _links(marks: tuple[str, ...]) -> Iterator[str]:
    for _, name in socket.if_nameindex():
        if any(name == f"slb{mark[:8]}" or (name.startswith(f"sl{mark[:4]}") and len(name) == 15) for mark in marks):
            yield f"link {name}"


def _tables(marks: tuple[str, ...]) -> Iterator[str]:
    if os.geteuid() == 0 and shutil.which("nft") is not None:
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        yield from (f"table {line}" for line in listed.splitlines() if line.endswith(tuple(f"strandline_{mark[:8]}" for mark in marks)))
