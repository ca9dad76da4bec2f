"""From a root directory to an ext4 file: how a sandbox's disk becomes an artifact (reference/cubesandbox.md §4.2).

The tree is read as data: no symbolic link is followed, and what is no file, directory, link or FIFO (device nodes, sockets) is left out.
The digest covers all that goes into the file system, so that the same disk is the same artifact, and the same digest the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.images.blocking import Stop, in_thread
from agents.images.contents import Contents
from agents.images.decode import Budget
from agents.images.faults import ImageFault, host_fault
from agents.images.options import DEFAULT_LIMITS, BuildLimits
from agents.images.pipeline import appearing, file_system, tell_on, workplace
from agents.images.progress import Meter, Tell
from agents.images.tools import find
from agents.images.tree import MAX_DEPTH, Entry, Kind, Node, Tree
from agents.images.unpack import KEPT, MAX_XATTRS, OVERLAY

_PIECE: Final = 256 * 1024
_EPOCH: Final = 1
"""Change and birth times of every inode. No clock: the same disk is to be the same bytes."""
_LAYER: Final = 0
_KINDS: Final = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished ext4 file: the digest of what it was made of (``sha256:…``), its own SHA-256 (hex) and its size in bytes."""

    digest: str
    sha256: str
    size_bytes: int


async def pack(
    root: Path, disk_mb: int, work: Path, out: Path, progress: Tell | None = None, limits: BuildLimits = DEFAULT_LIMITS
) -> Packed:
    """Make ``out`` of everything below ``root``, which nobody writes to meanwhile. ``disk_mb``: as for ``build``.

    Raises ``ImageFault`` (``image.too-large``, ``artifact.build-failed``, ``node.disk-full``); a cancelled call leaves nothing behind.
    """
    loop = asyncio.get_running_loop()
    meter = Meter((lambda told: tell_on(loop, progress, told)) if progress else None)

    def run(stop: Stop) -> Packed:
        for tool in ("mke2fs", "debugfs"):
            find(tool)
        with workplace(work) as place, Contents(place / "contents") as contents, appearing(out) as partial:
            reader = _Reader(contents, Budget(limits), stop)
            try:
                tree = reader.read(root)
            except OSError as error:
                raise host_fault(error, "reading the sandbox's disk") from error
            digest = f"sha256:{reader.digest.hexdigest()}"
            sha256 = file_system(tree, contents, place, (digest, _EPOCH, 1), disk_mb, partial, meter, stop)
            size = partial.stat().st_size
        return Packed(digest, sha256, size)

    return await in_thread(run)


class _Reader:
    """Reads a directory into a tree, names in byte order, and digests what it reads."""

    def __init__(self, contents: Contents, budget: Budget, stop: Stop) -> None:
        self._contents = contents
        self._budget = budget
        self._stop = stop
        self._linked: dict[tuple[int, int], Node] = {}
        self._numbers: dict[int, int] = {}
        self.digest = hashlib.sha256()

    def read(self, root: Path) -> Tree:
        tree = Tree(self._contents.release)
        path = os.fsencode(root)
        self._describe(tree.root, path, os.lstat(path))
        self._tell(b"/", tree.root)
        self._children(path, b"", tree.root, 0)
        return tree

    def _children(self, directory: bytes, within: bytes, node: Node, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ImageFault("image.too-large", f"a path is more than {MAX_DEPTH} directories deep")
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            self._stop.check()
            found = entry.stat(follow_symlinks=False)
            kind = _KINDS.get(stat.S_IFMT(found.st_mode))
            if kind is None:
                continue
            self._budget.entry()
            name = within + b"/" + entry.name
            child = self._node(kind, entry.path, name, found)
            child.links += 1
            node.children[entry.name] = Entry(child, _LAYER)
            if kind is Kind.DIRECTORY:
                self._children(entry.path, name, child, depth + 1)

    def _node(self, kind: Kind, path: bytes, name: bytes, found: os.stat_result) -> Node:
        known = self._linked.get((found.st_dev, found.st_ino)) if kind is not Kind.DIRECTORY and found.st_nlink > 1 else None
        if known is not None:
            self._tell_link(name, known)
            return known
        node = Node(kind, 0)
        self._describe(node, path, found)
        if kind is Kind.SYMLINK:
            node.target = os.readlink(path)  # noqa: PTH115 - names are bytes here, and need not be text
            node.size = len(node.target)
            self._tell(name, node, node.target)
        elif kind is Kind.FILE:
            content = hashlib.sha256()
            node.content, node.size = self._contents.add(self._chunks(path, content))
            self._tell(name, node, content.digest())
        else:
            self._tell(name, node)
        if kind is Kind.FILE and found.st_nlink > 1:
            self._numbers[id(node)] = len(self._linked)
            self._linked[found.st_dev, found.st_ino] = node
        return node

    def _describe(self, node: Node, path: bytes, found: os.stat_result) -> None:
        node.mode = 0o777 if node.kind is Kind.SYMLINK else stat.S_IMODE(found.st_mode)
        node.uid, node.gid = _owner(found)
        node.mtime_ns = found.st_mtime_ns
        for name in sorted(os.listxattr(path, follow_symlinks=False)) if node.kind is not Kind.SYMLINK else ():
            if name.startswith(KEPT) and not name.startswith(OVERLAY) and name.isprintable():
                node.xattrs[name] = os.getxattr(path, name, follow_symlinks=False)
        if sum(len(name) + len(value) for name, value in node.xattrs.items()) > MAX_XATTRS:
            raise ImageFault("image.too-large", f"a file has more than {MAX_XATTRS} bytes of extended attributes")

    def _chunks(self, path: bytes, content: hashlib._Hash) -> Iterator[bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            while chunk := file.read(_PIECE):
                self._stop.check()
                self._budget.stored(len(chunk))
                content.update(chunk)
                yield chunk

    def _tell(self, name: bytes, node: Node, what: bytes = b"") -> None:
        """Every field with its length, so that no two trees say the same."""
        head = f"{node.kind.name} {node.mode:o} {node.uid} {node.gid} {node.mtime_ns} {node.size}".encode()
        pairs = [part for item in sorted(node.xattrs.items()) for part in (item[0].encode(), item[1])]
        for part in (name, head, what, b"%d" % len(node.xattrs), *pairs):
            self.digest.update(b"%d:" % len(part))
            self.digest.update(part)

    def _tell_link(self, name: bytes, node: Node) -> None:
        for part in (name, b"LINK", b"%d" % self._numbers[id(node)]):
            self.digest.update(b"%d:" % len(part))
            self.digest.update(part)


def _owner(found: os.stat_result) -> tuple[int, int]:
    """Without root every file of a sandbox is the agent's own user's, who is user 0 inside."""
    if os.geteuid() == 0:
        return found.st_uid, found.st_gid
    return (0 if found.st_uid == os.geteuid() else found.st_uid), (0 if found.st_gid == os.getegid() else found.st_gid)
