"""How large a file system has to be for a tree: computed from the tree alone, so that the same image always has the same size.

Sizing (after reference/cubesandbox.md §3.6, without its fixed 256 MiB and its 1 GiB floor): data and metadata, 10 %, 2 MiB, rounded up
to a MiB. Room to write is not baked in: containers write into an overlay, and a microVM's disk is made as large as it was asked for and
the file system grown into it; what growing needs is reserved (``grow_to``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agents.images.options import MIB
from agents.images.tree import Kind, Node, Tree

BLOCK: Final = 4096
INODE: Final = 256
_FAST_SYMLINK: Final = 60
"""Targets shorter than this live in the inode."""
_GROUP: Final = 32768
"""Blocks per group: 128 MiB."""
_INODES_PER_GROUP: Final = 8192
"""One for 16 KiB, as ext4 has it by default. Every group that the file system grows by has as many as the first."""
_SPARE_INODES: Final = 256


@dataclass(frozen=True, slots=True)
class Geometry:
    """Blocks of 4 KiB, number of inodes, and how many blocks the file system may grow to online."""

    blocks: int
    inodes: int
    grow_to: int

    def enlarged(self) -> Geometry:
        """For the case that the estimate was short, as many small directories or fragmented extents can make it."""
        return Geometry(_round(self.blocks + self.blocks // 2), self.inodes, self.grow_to + self.blocks // 2)


def measure(tree: Tree, disk_mb: int) -> Geometry:
    """``disk_mb``: how much room to write a sandbox will be given on top."""
    nodes = {id(tree.root): tree.root} | {id(node): node for _, node in tree.walk()}
    data = sum(_blocks(node) for node in nodes.values())
    groups = data // (_GROUP - 1024) + 1
    inodes = max(len(nodes) + len(nodes) // 4 + _SPARE_INODES, groups * _INODES_PER_GROUP)
    table = inodes * INODE // BLOCK
    blocks = _round((data + table + groups * 4) * 11 // 10 + 2 * MIB // BLOCK)
    return Geometry(blocks, inodes, blocks + disk_mb * MIB // BLOCK)


def _blocks(node: Node) -> int:
    size = node.size
    if node.kind is Kind.DIRECTORY:
        size = sum(12 + len(name) for name in node.children) * 4 // 3 + BLOCK
    elif node.kind is Kind.SYMLINK and size < _FAST_SYMLINK:
        size = 0
    return -(-size // BLOCK) + bool(node.xattrs)


def _round(blocks: int) -> int:
    per_mib = MIB // BLOCK
    return -(-blocks // per_mib) * per_mib
