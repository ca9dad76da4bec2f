"""Empty qcow2 overlays, written without a helper program, and what a file says lies below it (docs/interop/qcow2.txt of QEMU).

``qemu-img create`` takes 8 ms for the same 200 KiB (reference/runtimes.md §5).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault

_CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << _CLUSTER_BITS
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC: Final = b"QFI\xfb"
_FORMAT: Final = 0xE2792ACA
"""The header extension that names the backing file's format: without it QEMU would have to guess, and a guest could fool it."""
_PER_TABLE: Final = _CLUSTER * (_CLUSTER // 8)
"""Bytes of disk that one entry of the first-level table stands for."""


def create(path: Path, backing: Path) -> None:
    """An empty overlay over another disk, of its size. Raises ``root.too-big``, ``artifact.unreadable``, ``FileExistsError``."""
    size = size_of(backing)
    tables = -(-size // _PER_TABLE)
    if tables > _CLUSTER // 8:
        raise RuntimeFault("root.too-big", f"a disk of {size >> 40} TiB")
    first = _first_cluster(_Fields(size, tables, l1_at=3 * _CLUSTER, refcounts_at=_CLUSTER, refcounts=1), backing)
    with path.open("xb") as file:
        file.write(b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in (first, _ONE_TABLE, _FOUR_IN_USE, b"")))


def adopt(path: Path, backing: Path) -> None:
    """Lay an overlay that another node made over a file of this one, and believe nothing else of what it says.

    Raises ``snapshot.unreadable`` for what is no overlay like ours: one with another name, or another file, in it could name any file here.
    """
    with path.open("r+b") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:4] != _MAGIC:
            raise RuntimeFault("snapshot.unreadable", f"{path.name} is no overlay")
        (_, version, _, _, bits, size, crypt, tables, l1_at, refcounts_at, refcounts, saved, _, incompatible, _, _, order, _) = (
            _HEADER.unpack(head)
        )
        if (version, bits, crypt, saved, incompatible, order) != (3, _CLUSTER_BITS, 0, 0, 0, 4) or min(l1_at, refcounts_at) < _CLUSTER:
            raise RuntimeFault("snapshot.unreadable", f"{path.name} is an overlay of another make")
        file.seek(0)
        file.write(_first_cluster(_Fields(size, tables, l1_at, refcounts_at, refcounts), backing).ljust(_CLUSTER, b"\0"))


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a header says of its own file: bytes of disk, and where its tables are."""

    size: int
    tables: int
    l1_at: int
    refcounts_at: int
    refcounts: int


_ONE_TABLE: Final = struct.pack(">Q", 2 * _CLUSTER)
_FOUR_IN_USE: Final = struct.pack(">4H", 1, 1, 1, 1)


def _first_cluster(of: _Fields, backing: Path) -> bytes:
    name, kind = os.fsencode(backing), b"qcow2" if _is_qcow2(backing) else b"raw"
    extensions = struct.pack(">II8sII", _FORMAT, len(kind), kind, 0, 0)
    at = _HEADER.size + len(extensions)
    tables = (of.tables, of.l1_at, of.refcounts_at, of.refcounts)
    head = _HEADER.pack(_MAGIC, 3, at, len(name), _CLUSTER_BITS, of.size, 0, *tables, 0, 0, 0, 0, 0, 4, _HEADER.size)
    return head + extensions + name


def size_of(path: Path) -> int:
    """The size of the disk in bytes that a raw or qcow2 file holds, whole sectors."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if head[:4] == _MAGIC:
            return int(_HEADER.unpack(head)[5])
        return -(-os.fstat(file.fileno()).st_size // 512) * 512


def below(path: Path) -> Path | None:
    """The file that an overlay lies over; None for a raw one, which lies over nothing. Raises ``artifact.unreadable``."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if head[:4] != _MAGIC:
            return None
        if len(head) < _HEADER.size:
            raise RuntimeFault("artifact.unreadable", f"{path.name} is cut off")
        at, length = _HEADER.unpack(head)[2:4]
        file.seek(at)
        return Path(os.fsdecode(file.read(length))) if at else None


def _is_qcow2(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _MAGIC
