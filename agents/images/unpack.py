"""Layers applied to a tree: tar members become nodes, whiteouts hide, and what could harm whoever unpacks it is refused.

The names of a layer are data. They are checked here, then only ever looked up in the tree (:mod:`agents.images.tree`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Final

from agents.images.contents import Contents
from agents.images.decode import Budget, Layer
from agents.images.faults import ImageFault, host_fault
from agents.images.progress import Meter
from agents.images.source import CHUNK
from agents.images.tarstream import Window, data, members
from agents.images.tree import Kind, Node, Tree, unsafe

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
"""Other names that begin so are bookkeeping of the aufs file system, which Docker ignores as well."""

_XATTR: Final = "SCHILY.xattr."
KEPT: Final = ("user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default")
"""Attributes that belong to the image. Labels (SELinux, IMA) belong to the host it was built on and are left out."""
OVERLAY: Final = ("trusted.overlay.", "user.overlay.")
MAX_XATTRS: Final = 3072
"""Bytes per node: they have to fit into one block of the file system (4,096 less its own headers)."""

_MAX_NAME: Final = 255
_MAX_PATH: Final = 4096
_MAX_ID: Final = 2**32 - 2
"""The all-ones id means "no id" to the kernel."""
_MIN_SECOND: Final = -(2**31)
_MAX_SECOND: Final = 2**34 - 2**31 - 1
"""ext4 counts seconds in 34 bits."""


class Unpacker:
    """Applies one layer after the other, bottom first."""

    def __init__(self, tree: Tree, contents: Contents, budget: Budget, meter: Meter) -> None:
        self._tree = tree
        self._contents = contents
        self._budget = budget
        self._meter = meter

    def apply(self, layer: Layer, number: int) -> None:
        """Raises ``ImageFault``; then tree and contents are to be thrown away."""
        window = Window(layer.chunks())
        told = 0
        for tar, member in members(window):
            self._budget.entry()
            self._member(tar, member, window, number)
            self._meter.add(layer.packed - told)
            told = layer.packed
        window.drain()
        self._meter.add(layer.packed - told)
        self._meter.layer()

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, window: Window, number: int) -> None:
        path = split(member.name)
        if path and path[-1].startswith(_WHITEOUT):
            self._whiteout(path, number)
        elif member.islnk():
            self._tree.link(path, split(member.linkname), number)
        elif member.isdir():
            self._tree.put(path, node_of(member, Kind.DIRECTORY), number)
        elif member.issym():
            node = node_of(member, Kind.SYMLINK)
            node.target = link_target(member)
            node.size = len(node.target)
            self._tree.put(path, node, number)
        elif member.isfifo():
            self._tree.put(path, node_of(member, Kind.FIFO), number)
        elif member.ischr() or member.isblk():
            raise ImageFault("image.device-node", f"{member.name[:300]!r} is a device node")
        elif member.isreg():
            node = node_of(member, Kind.FILE)
            try:
                node.content, node.size = self._contents.add(self._metered(data(tar, member, window, CHUNK)))
            except OSError as error:
                raise host_fault(error, "unpacking a layer") from error
            self._tree.put(path, node, number)
        else:
            raise ImageFault("image.bad-layer", f"{member.name[:300]!r} is of unknown type {member.type!r}")

    def _metered(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._budget.stored(len(chunk))
            yield chunk

    def _whiteout(self, path: list[bytes], number: int) -> None:
        name = path[-1]
        if name == _OPAQUE:
            self._tree.hide_children(path[:-1], number)
        elif not name.startswith(_AUFS):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in {b"", b".", b".."}:
                raise unsafe(path, "a whiteout of no name")
            self._tree.hide([*path[:-1], hidden], number)


def split(name: str) -> list[bytes]:
    """A member's path as components. Raises ``image.unsafe-path`` for absolute names, ``..``, NUL and what no file system can hold."""
    raw = name.encode("utf-8", "surrogateescape")
    if raw.startswith(b"/"):
        raise unsafe([raw], "an absolute name")
    if b"\0" in raw or len(raw) > _MAX_PATH:
        raise unsafe([raw], f"a NUL byte, or more than {_MAX_PATH} bytes")
    path = [part for part in raw.split(b"/") if part not in {b"", b"."}]
    if b".." in path:
        raise unsafe([raw], "it has ..")
    if any(len(part) > _MAX_NAME for part in path):
        raise unsafe([raw], f"a component of more than {_MAX_NAME} bytes")
    return path


def link_target(member: tarfile.TarInfo) -> bytes:
    target = member.linkname.encode("utf-8", "surrogateescape")
    if not target or b"\0" in target or len(target) >= _MAX_PATH:
        raise unsafe([member.name.encode("utf-8", "surrogateescape")], "a symbolic link to nothing, with a NUL byte, or too long")
    return target


def node_of(member: tarfile.TarInfo, kind: Kind) -> Node:
    """Owner, mode, time and attributes. Raises ``image.bad-layer``, ``image.unsafe-xattr``, ``image.too-large``."""
    if not (0 <= member.uid <= _MAX_ID and 0 <= member.gid <= _MAX_ID):
        raise ImageFault("image.bad-layer", f"{member.name[:300]!r} has an impossible owner {member.uid}:{member.gid}")
    node = Node(kind, 0o777 if kind is Kind.SYMLINK else member.mode & 0o7777, member.uid, member.gid, mtime_ns(member))
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            name = key.removeprefix(_XATTR)
            if name.startswith(OVERLAY):
                raise ImageFault("image.unsafe-xattr", f"{member.name[:300]!r} has {name[:100]!r}: it would reach into overlay mounts")
            if name.startswith(KEPT) and name.isprintable():
                node.xattrs[name] = value.encode("utf-8", "surrogateescape")
    if sum(len(name) + len(value) for name, value in node.xattrs.items()) > MAX_XATTRS:
        raise ImageFault("image.too-large", f"{member.name[:300]!r} has more than {MAX_XATTRS} bytes of extended attributes")
    return node


def mtime_ns(member: tarfile.TarInfo) -> int:
    """Nanoseconds since 1970, as exact as the archive says it: a float would round."""
    try:
        moment = Decimal(member.pax_headers.get("mtime") or str(member.mtime))
        if not _MIN_SECOND <= moment <= _MAX_SECOND:
            moment = Decimal(0)
    except InvalidOperation:
        moment = Decimal(0)
    return int(moment * 10**9)
