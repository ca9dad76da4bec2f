"""Large files go into the file system after it was made, a few at a time, each gone from the host as soon as it is in.

``mke2fs -d`` has the whole tree on disk until its copy is finished: twice the image. So it gets the tree without its large files, and
``debugfs`` brings these in. What one call brings in is all that is there twice: a part of the image, or its largest file.

So an image that is one huge file needs twice its size (measured: 1.98). It stays so, because nothing says for certain how far ``debugfs``
has read: it can neither append to a file nor read from a pipe, the position in its descriptor jumps to the end of the data before it begins
to copy (a build that believed it lost the file), and what it allocates unwritten (``fallocate``) it cannot mark as written. A guess would
cost bytes silently when it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agents.images.faults import ImageFault
from agents.images.geometry import BLOCK
from agents.images.options import MIB
from agents.images.tree import Kind, Node

LARGE: Final = 16 * 1024
"""Bytes from which a file is worth a command of its own."""
_PORTIONS: Final = 16
_PORTION: Final = 4 * MIB
"""What a call brings in: a part of all, but at least so much."""
_UNSPEAKABLE: Final = (b"\n", b"\r")
"""Ends of a line of ``debugfs``, which has no other way to write them."""
_ALLOCATED: Final = re.compile(r"^Allocated inode: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Large:
    """A file that waits outside: the directory that it belongs to, and its name there."""

    directory: Node
    name: bytes
    node: Node

    @property
    def blocks(self) -> int:
        """What it needs at most, a block for its extents included."""
        return -(-self.node.size // BLOCK) + 1


def waits(name: bytes, node: Node) -> bool:
    """May it come later? One with several names may not: they are linked while the tree is copied."""
    return node.kind is Kind.FILE and node.size >= LARGE and node.links <= 1 and not any(end in name for end in _UNSPEAKABLE)


def portions(files: Sequence[Large]) -> Iterator[list[Large]]:
    """The files in order, in parts that are small beside all of them."""
    most = max(sum(file.node.size for file in files) // _PORTIONS, _PORTION)
    portion: list[Large] = []
    for file in files:
        if portion and sum(other.node.size for other in portion) + file.node.size > most:
            yield portion
            portion = []
        portion.append(file)
    if portion:
        yield portion


def script(portion: Iterable[Large], directories: Mapping[int, int], folder: str) -> bytes:
    """``debugfs`` commands. ``directories``: inode numbers by ``id`` of their nodes; ``folder``: where contents lie."""
    lines, inside = [], None
    for file in portion:
        if file.directory is not inside:
            lines.append(b"cd <%d>" % directories[id(file.directory)])
            inside = file.directory
        lines.append(b'write "%s/%d" "%s"' % (folder.encode(), file.node.content, file.name.replace(b'"', b'""')))
    return b"\n".join([*lines, b""])


def brought(portion: Sequence[Large], said: str) -> list[tuple[int, Node]]:
    """Inode numbers and nodes, from what ``debugfs`` said. Raises ``artifact.build-failed`` when it is not one for each."""
    numbers = [int(number) for number in _ALLOCATED.findall(said)]
    if len(numbers) != len(portion):
        raise ImageFault("artifact.build-failed", f"debugfs made {len(numbers)} of {len(portion)} files")
    return [(number, file.node) for number, file in zip(numbers, portion, strict=True)]
