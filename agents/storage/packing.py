"""Trees as chunks: what is in a directory, told by a list of entries, and the contents of its files cut into pieces with digests.

Large files are cut at fixed places, so that a change in the middle of one changes one piece. Small ones are put together in the order of
their names, and a piece ends where the content of a file says so, so that a file more or less changes its own piece and not all after it.
Everything that belongs to a tree is kept: modes, owners, times, extended attributes (overlay's own included), hard links, devices, holes.
"""

# ruff: noqa: PTH115, PTH123 - paths are bytes here, whatever names are in the tree

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

PIECE: Final = 512 * 1024
"""Bytes of content in a piece at most."""
SMALL: Final = 128 * 1024
"""A file of this size or more has pieces of its own."""
ENDS_AT: Final = 12
"""A pack ends behind a file whose digest begins with a byte below this: one in about twenty."""
HOLE: Final = -1
"""The number of the piece that is not stored: nothing but zeros."""

Entry = dict[str, Any]
"""``p`` path, ``m`` mode, ``u`` ``g`` owners, ``t`` time of change (ns), ``x`` attributes; ``l`` target of a symbolic link, ``d`` device,
``h`` path of the first name of the same file, ``s`` size and ``c`` extents (piece, offset in it, bytes). Bytes are text as Latin-1."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file."""

    path: bytes
    offset: int
    length: int


@dataclass(slots=True)
class Packed:
    """``entries`` of each layer; ``pieces``: every distinct piece by its digest, and where its content is."""

    entries: list[list[Entry]] = field(default_factory=list)
    pieces: dict[str, tuple[Slice, ...]] = field(default_factory=dict)
    size_bytes: int = 0

    def index(self) -> bytes:
        """The entries as bytes; the same for the same trees."""
        return orjson.dumps(self.entries, option=orjson.OPT_SORT_KEYS)


def pack(layers: Sequence[Path]) -> Packed:
    """Look at every byte of these trees. They must not change meanwhile. Raises ``OSError``."""
    packed = Packed()
    numbers: dict[str, int] = {}
    for layer in layers:
        packed.entries.append(_Packer(packed, numbers, os.fsencode(layer)).entries())
    return packed


def content(slices: Sequence[Slice]) -> bytes:
    """A piece's content, read again. Raises ``OSError``."""
    parts = []
    for part in slices:
        with open(part.path, "rb") as file:
            parts.append(os.pread(file.fileno(), part.length, part.offset))
    return b"".join(parts)


def digest(data: bytes) -> str:
    """The name of a piece."""
    return hashlib.sha256(data).hexdigest()


def cut(data: bytes) -> Iterator[bytes]:
    """Something of any length as pieces."""
    for at in range(0, max(len(data), 1), PIECE):
        yield data[at : at + PIECE]


class _Packer:
    """One layer's entries. ``numbers`` gives pieces their numbers, over all layers."""

    def __init__(self, packed: Packed, numbers: dict[str, int], root: bytes) -> None:
        self._packed = packed
        self._numbers = numbers
        self._root = root
        self._names: dict[tuple[int, int], str] = {}
        self._pack: list[tuple[Entry, Slice]] = []
        self._digest = hashlib.sha256()
        self._held = 0

    def entries(self) -> list[Entry]:
        found = [entry for path in _walk(self._root) if (entry := self._entry(path)) is not None]
        self._end_pack()
        return found

    def _entry(self, path: bytes) -> Entry | None:
        seen = os.lstat(path)
        if stat.S_ISSOCK(seen.st_mode):
            return None  # means nothing without who listens
        name = os.path.relpath(path, self._root).decode("latin-1")
        entry: Entry = {"p": name, "m": seen.st_mode, "u": seen.st_uid, "g": seen.st_gid, "t": seen.st_mtime_ns}
        if attributes := _attributes(path):
            entry["x"] = attributes
        if not stat.S_ISDIR(seen.st_mode) and seen.st_nlink > 1:
            first = self._names.setdefault((seen.st_dev, seen.st_ino), name)
            if first != name:
                return {"p": name, "m": seen.st_mode, "h": first}
        if stat.S_ISLNK(seen.st_mode):
            entry["l"] = os.readlink(path).decode("latin-1")
        elif stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode):
            entry["d"] = seen.st_rdev
        elif stat.S_ISREG(seen.st_mode):
            self._file(entry, path, seen.st_size)
        return entry

    def _file(self, entry: Entry, path: bytes, size: int) -> None:
        entry |= {"s": size, "c": []}
        self._packed.size_bytes += size
        with open(path, "rb") as file:
            if size < SMALL:
                self._small(entry, path, file.read(size))
                return
            for offset in range(0, size, PIECE):
                data = file.read(PIECE)
                if data.count(0) == len(data):
                    entry["c"].append([HOLE, 0, len(data)])
                else:
                    number = self._number(digest(data), (Slice(path, offset, len(data)),))
                    entry["c"].append([number, 0, len(data)])

    def _small(self, entry: Entry, path: bytes, data: bytes) -> None:
        if not data:
            return
        if self._held + len(data) > PIECE:
            self._end_pack()
        entry["c"] = [[0, self._held, len(data)]]
        self._pack.append((entry, Slice(path, 0, len(data))))
        self._digest.update(data)
        self._held += len(data)
        if hashlib.sha256(data).digest()[0] < ENDS_AT:
            self._end_pack()

    def _end_pack(self) -> None:
        if self._pack:
            number = self._number(self._digest.hexdigest(), tuple(part for _, part in self._pack))
            for entry, _ in self._pack:
                entry["c"][0][0] = number
        self._pack, self._digest, self._held = [], hashlib.sha256(), 0

    def _number(self, digest: str, slices: tuple[Slice, ...]) -> int:
        self._packed.pieces.setdefault(digest, slices)
        return self._numbers.setdefault(digest, len(self._numbers))


def _walk(directory: bytes) -> Iterator[bytes]:
    """The directory and everything below it, each before what is in it, in the order of names."""
    yield directory
    for entry in sorted(os.scandir(directory), key=lambda found: found.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry.path


def _attributes(path: bytes) -> Mapping[str, str]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False).decode("latin-1") for name in sorted(names)}
