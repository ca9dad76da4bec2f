"""What an installation has left on the host, found without its help: by its directory's name, and by the names that agents make from it.

Agents name control groups, interfaces and tables after the SHA-256 of the folder that they belong to (``agents/drivers/statedir.py``,
``agents/network/netns.py``), so the folders have to be noted while they are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from strandline.host_packages import SBIN

_CGROUPS: Final = Path("/sys/fs/cgroup")
_WAIT_S: Final = 3.0
"""How long what was told to end may take to be gone."""


class Traces:
    """Notes the folders of ``directory`` now, and tells later what is left of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        folders = [*directory.glob("nodes/*/drivers/*"), *directory.glob("nodes/*/network")]
        self._marks = tuple(hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8] for folder in folders)

    def left(self) -> list[str]:
        """Files, processes, mounts, control groups, links and tables; empty when nothing is left."""
        deadline = time.monotonic() + _WAIT_S
        while (found := self.now()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def now(self) -> list[str]:
        """The same, without waiting."""
        files = [f"file {self._directory}"] if Path(self._directory).exists() else []
        return [*files, *self._processes(), *self._mounts(), *self._groups(), *self._links(), *self._tables()]

    def _processes(self) -> Iterator[str]:
        """Whose command line or root file system names the directory."""
        ancestors = set(_ancestors())
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) not in ancestors:
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if self._directory in command or self._directory in _root(entry):
                        yield f"process {entry.name} {command[:200]}"

    def _mounts(self) -> Iterator[str]:
        points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        yield from (f"mount {point}" for point in points if f"{point}/".startswith(f"{self._directory}/"))

    def _groups(self) -> Iterator[str]:
        tops = [_CGROUPS, *_CGROUPS.glob("*/")]
        names = {name for top in tops for name in _listed(top) if name.startswith("strandline-") and name.split("-")[1] in self._marks}
        yield from (f"cgroup {name}" for name in sorted(names))

    def _links(self) -> Iterator[str]:
        for _, name in socket.if_nameindex():
            if any(name == f"slb{mark}" or (name.startswith(f"sl{mark[:4]}") and len(name) == 15) for mark in self._marks):
                yield f"interface {name}"

    def _tables(self) -> Iterator[str]:
        nft = shutil.which("nft", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN]))
        if os.geteuid() == 0 and nft is not None:
            listed = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=False).stdout  # noqa: S603 - fixed words
            yield from (line for line in listed.splitlines() if line.endswith(tuple(f"strandline_{mark}" for mark in self._marks)))


def _ancestors() -> Iterator[int]:
    """This process and those that it descends from: a shell's command line may well name the directory."""
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _root(process: Path) -> str:
    """What a process has mounted on ``/``."""
    lines = (process / "mountinfo").read_text(errors="replace").splitlines()
    return "".join(line for line in lines if line.split()[4] == "/")


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough
    except OSError:
        return []
