"""The union tree laid out on disk for ``mke2fs -d``, as whoever runs the agent, with metadata left out.

Files are 0600 and directories 0700 and our own: no set-user-id program of an image ever lies on the host. Instead of its time, every
inode carries its number in :attr:`Staged.nodes` as modification time, so that it is found again in the file system that was made of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agents.images.bringing import Large, waits
from agents.images.contents import Contents
from agents.images.faults import ImageFault, host_fault
from agents.images.tree import TOP, Kind, Node, Tree

LOST_FOUND: Final = b"lost+found"
"""``mke2fs`` makes it in any case; so it is in every tree, and has defined metadata."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Staged:
    """A staged tree: where it lies, its root directory, and the node of every other inode, whose time on disk is its index + 1.

    ``large``: the files that are not there but come later, from ``contents``.
    """

    path: Path
    root: Node
    contents: Contents
    nodes: list[Node] = field(default_factory=list)
    large: list[Large] = field(default_factory=list)


def stage(tree: Tree, contents: Contents, root: Path, check: Callable[[], None]) -> Staged:
    """Move all small contents to their places below ``root``, which must not exist. ``check`` is called often, to raise when cancelled."""
    with_lost_found(tree)
    root.mkdir(mode=0o700)
    staged = Staged(root, tree.root, contents)
    fd = os.open(root, _DIRECTORY)
    try:
        _Stager(staged, contents, check).directory(fd, tree.root)
    except OSError as error:
        raise host_fault(error, "staging the image") from error
    finally:
        os.close(fd)
    return staged


def with_lost_found(tree: Tree) -> None:
    entry = tree.entry([LOST_FOUND])
    if entry is None:
        tree.put([LOST_FOUND], Node(Kind.DIRECTORY, 0o700, mtime_ns=tree.mtime_ns), layer=TOP)
    elif entry.node.kind is not Kind.DIRECTORY:
        raise ImageFault("image.bad-layer", "/lost+found is no directory, as ext4 wants it to be")


class _Stager:
    """Walks the tree with one descriptor per level; every name is used relative to the directory made for it."""

    def __init__(self, staged: Staged, contents: Contents, check: Callable[[], None]) -> None:
        self._staged = staged
        self._contents = contents
        self._check = check
        self._anchors: dict[int, str] = {}

    def directory(self, fd: int, node: Node) -> None:
        for name in sorted(node.children):
            child = node.children[name].node
            self._check()
            if child.kind is Kind.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=fd)
                below = os.open(name, _DIRECTORY, dir_fd=fd)
                try:
                    self.directory(below, child)
                    moment = self._number(child)
                    os.utime(below, (moment, moment))
                finally:
                    os.close(below)
            elif waits(name, child):
                self._staged.large.append(Large(node, name, child))
            else:
                self._leaf(fd, name, child)

    def _leaf(self, fd: int, name: bytes, node: Node) -> None:
        anchor = self._anchors.get(id(node))
        if anchor is not None:
            os.link(anchor, name, src_dir_fd=self._contents.fd, dst_dir_fd=fd, follow_symlinks=False)
            return
        if node.kind is Kind.FILE:
            os.rename(str(node.content), name, src_dir_fd=self._contents.fd, dst_dir_fd=fd)
        elif node.kind is Kind.SYMLINK:
            os.symlink(node.target, name, dir_fd=fd)
        else:
            os.mkfifo(name, 0o600, dir_fd=fd)
        moment = self._number(node)
        os.utime(name, (moment, moment), dir_fd=fd, follow_symlinks=False)
        if node.links > 1:  # its other names are linked from a place that does not depend on where they are
            anchor = self._anchors[id(node)] = f"anchor-{len(self._anchors)}"
            os.link(name, anchor, src_dir_fd=fd, dst_dir_fd=self._contents.fd, follow_symlinks=False)

    def _number(self, node: Node) -> int:
        self._staged.nodes.append(node)
        return len(self._staged.nodes)
