"""Chunks as trees again: the other half of ``packing``.

What comes from the bus has its digests right, and is still only believed as far as it cannot reach out of the directory that is being
made: nothing is followed, no name leads upwards, and no entry lies below something that is not a directory of this tree.
"""

# ruff: noqa: PTH101, PTH102, PTH118, PTH211 - paths are bytes here, whatever names are in the tree

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from agents.drivers.driver import RuntimeFault
from agents.storage.packing import HOLE, Entry

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MINE: Final = "user."


def read_index(data: bytes) -> list[list[Entry]]:
    """The entries of each layer. Raises ``RuntimeFault``: ``snapshot.unreadable``."""
    try:
        layers: list[list[Entry]] = orjson.loads(data)
        for layer in layers:
            _check(layer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeFault("snapshot.unreadable", f"the snapshot's list of entries is damaged: {error!r}") from error
    return layers


def _check(layer: Sequence[Entry]) -> None:
    """Every entry lies directly in a directory that came before it, and no name comes twice."""
    directories: set[str] = set()
    seen: set[str] = set()
    if not layer:
        raise ValueError("a tree without a root")
    for entry in layer:
        path: str = entry["p"]
        parent, _, name = path.rpartition("/")
        first = not seen
        if first != (path == ".") or path in seen or name in {"", ".."} or "\0" in path:
            raise ValueError(f"entry {path!r}")
        if not first and (parent or ".") not in directories:
            raise ValueError(f"{path!r} lies in nothing")
        if "h" in entry and (entry["h"] not in seen or entry["h"] in directories):
            raise ValueError(f"{path!r} is another name of nothing")
        seen.add(path)
        if stat.S_ISDIR(entry["m"]):
            directories.add(path)


class Unpacker:
    """Makes one layer in an empty directory, piece by piece: files first, with what the pieces bring, the rest in ``finish``."""

    def __init__(self, target: Path, entries: Sequence[Entry]) -> None:
        self._root = os.fsencode(target)
        self._entries = entries
        self._wanted: dict[int, list[tuple[Entry, int, int, int]]] = {}
        for entry in entries:
            at = 0
            for number, offset, length in entry.get("c", ()):
                if number != HOLE:
                    self._wanted.setdefault(number, []).append((entry, at, offset, length))
                at += length

    def begin(self) -> None:
        """Directories, and files as long as they will be and empty. Raises ``OSError``."""
        for entry in self._entries[1:]:
            if stat.S_ISDIR(entry["m"]):
                os.mkdir(self._path(entry), 0o700)
            elif stat.S_ISREG(entry["m"]) and "h" not in entry:
                descriptor = os.open(self._path(entry), _FLAGS, 0o600)
                os.ftruncate(descriptor, int(entry["s"]))
                os.close(descriptor)

    def piece(self, number: int, data: bytes) -> None:
        """The content of a piece goes where it belongs."""
        for entry, at, offset, length in self._wanted.get(number, ()):
            descriptor = os.open(self._path(entry), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.pwrite(descriptor, memoryview(data)[offset : offset + length], at)
            os.close(descriptor)

    def finish(self) -> None:
        """Links and devices, then owners, attributes, modes and times, of what is in a directory before its own."""
        for entry in self._entries[1:]:
            self._make(entry)
        for entry in reversed(self._entries):
            if "h" not in entry:
                self._dress(entry)

    def _make(self, entry: Entry) -> None:
        path, mode = self._path(entry), int(entry["m"])
        if "h" in entry:
            os.link(self._join(entry["h"]), path, follow_symlinks=False)
        elif stat.S_ISLNK(mode):
            os.symlink(entry["l"].encode("latin-1"), path)
        elif not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            os.mknod(path, mode, int(entry.get("d", 0)))

    def _dress(self, entry: Entry) -> None:
        path, mode = self._path(entry), int(entry["m"])
        if os.geteuid() == 0:
            os.chown(path, int(entry["u"]), int(entry["g"]), follow_symlinks=False)
        attributes: Mapping[str, str] = entry.get("x", {})
        for name, value in attributes.items():
            if os.geteuid() == 0 or name.startswith(_MINE):
                os.setxattr(path, name, value.encode("latin-1"), follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode))
        os.utime(path, ns=(int(entry["t"]), int(entry["t"])), follow_symlinks=False)

    def _path(self, entry: Entry) -> bytes:
        return self._join(entry["p"])

    def _join(self, name: Any) -> bytes:
        return self._root if name == "." else os.path.join(self._root, str(name).encode("latin-1"))
