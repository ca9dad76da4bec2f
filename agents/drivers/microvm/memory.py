"""A saved memory: RAM, device state, and what must be the same for a machine to go on from it. Immutable once it is there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm.command import Build, Shape

_MANIFEST: Final = "machine.json"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_BATCH: Final = 256 * _PAGE

_OWN: Final = bytes(1 if top & 0b010 or top & 0b101 == 0b100 else 0 for top in (byte >> 5 for byte in range(256)))
"""The top byte of a pagemap entry to: is this page the process's own? Bit 63 present, 62 swapped, 61 the file's
(Documentation/admin-guide/mm/pagemap.rst)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """``directory`` holds ``ram`` (sparse), ``state`` and the manifest.

    ``sandbox``: whose it is; ``limits``: its own, as the guest was told them, empty when they were changed since.
    """

    directory: Path
    shape: Shape
    build: Build
    sandbox: str = ""
    limits: str = ""

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @classmethod
    def read(cls, directory: Path) -> Memory:
        """Raises ``snapshot.unreadable``."""
        try:
            said = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
            return cls(directory, Shape(**said["shape"]), Build(**said["build"]), said["sandbox"], said["limits"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeFault("snapshot.unreadable", f"no memory in {directory.name}: {error}") from error

    def write(self) -> None:
        """The last thing to be written: from here on it is whole."""
        said = {"shape": asdict(self.shape), "build": asdict(self.build), "sandbox": self.sandbox, "limits": self.limits}
        draft = self.directory / f".{_MANIFEST}"
        draft.write_text(json.dumps(said), encoding="utf-8")
        draft.replace(self.directory / _MANIFEST)

    def refuse_other(self, build: Build) -> None:
        """Raises ``snapshot.incompatible``: device states fit only the QEMU and the processor that wrote them (runtimes.md §11)."""
        mine, theirs = ((made.qemu, made.accel, f"machine {made.machine}") for made in (self.build, build))
        if mine != theirs:
            raise RuntimeFault("snapshot.incompatible", f"the memory was saved by {' '.join(mine)}, this host has {' '.join(theirs)}")


def copy_sparse(source: Path, target: Path) -> None:
    """A copy of what is not holes, block by block in the kernel."""
    with source.open("rb") as read, target.open("xb") as write:
        os.truncate(write.fileno(), os.fstat(read.fileno()).st_size)
        for start, end in _data(read.fileno()):
            at = start
            while at < end:
                at += os.copy_file_range(read.fileno(), write.fileno(), end - at, at, at)


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has bytes: (start, end)."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def copy_own_pages(pid: int, ram: Path, target: Path) -> int:
    """What a process has changed of the file that it maps copy-on-write, into a copy of that file. Bytes copied.

    Raises ``snapshot.not-permitted`` where this user may not look into its own processes (``kernel.yama.ptrace_scope``).
    """
    copied, here = 0, Path("/proc", str(pid))
    try:
        with (here / "pagemap").open("rb") as map_, (here / "mem").open("rb") as memory, target.open("r+b") as out:
            for first, last, offset in _mappings(pid, ram):
                entries = os.pread(map_.fileno(), (last - first) // _PAGE * 8, first // _PAGE * 8)
                for run in re.finditer(rb"\x01+", entries[7::8].translate(_OWN)):
                    copied += _copy_run(memory.fileno(), out.fileno(), first, offset, run)
    except PermissionError as error:
        raise RuntimeFault("snapshot.not-permitted", f"reading the memory of process {pid}: {error}") from error
    return copied


def _copy_run(memory: int, out: int, first: int, offset: int, run: re.Match[bytes]) -> int:
    at, end = run.start() * _PAGE, run.end() * _PAGE
    while at < end:
        data = os.pread(memory, min(_BATCH, end - at), first + at)
        os.pwrite(out, data, offset + at)
        at += len(data)
    return end - run.start() * _PAGE


def _mappings(pid: int, ram: Path) -> Iterator[tuple[int, int, int]]:
    """(first address, end, offset in the file) of a file's mappings."""
    wanted = ram.stat()
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, device, inode, *_ = line.split(None, 5)
        major, _, minor = device.partition(":")
        if int(inode) == wanted.st_ino and os.makedev(int(major, 16), int(minor, 16)) == wanted.st_dev:
            first, _, last = addresses.partition("-")
            yield int(first, 16), int(last, 16), int(offset, 16)
