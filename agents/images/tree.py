"""The union of an image's layers as a tree in memory: what is where, with its true owner, mode, times and attributes.

Nothing here touches the host: contents are numbers that :mod:`agents.images.contents` gives out. So a path in a layer can never lead
outside, whatever symbolic links say; it is resolved among our own nodes, as inside a chroot.

Rules (OCI image layer specification, "Applying Changesets"; where it is silent, what Docker and umoci do):
1. An entry replaces what an earlier entry put there; a directory over a directory keeps its children.
2. Parents are resolved through symbolic links. Missing ones are made (0755, root). One that climbs out of the root is refused.
3. A whiteout hides only what lower layers left, whatever the order of entries within its own layer.
4. A hard link shares the node of its target; replacing one of its names leaves the others as they are. A hard link to a symbolic link is
   one more symbolic link: nothing can tell them apart by use, and ``mke2fs -d`` makes two of them anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

from agents.images.faults import ImageFault

MAX_DEPTH: Final = 200
"""Directories above an entry. Tools that walk the result recurse, and hold one descriptor per level."""
_MAX_STEPS: Final = 1000
_MAX_LINKS: Final = 40
"""As the kernel's own bound on symbolic links in one path."""


class Kind(Enum):
    FILE = 0o100000
    DIRECTORY = 0o040000
    SYMLINK = 0o120000
    FIFO = 0o010000


class Node:
    """One inode. ``links`` counts its names; ``content`` is a number of the content store (files), ``target`` a link's text."""

    __slots__ = ("children", "content", "gid", "kind", "links", "mode", "mtime_ns", "size", "target", "uid", "xattrs")

    def __init__(self, kind: Kind, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs: dict[str, bytes] = {}
        self.size = 0
        self.content = -1
        self.target = b""
        self.links = 0
        self.children: dict[bytes, Entry] = {}


class Entry:
    """A name in a directory: which node, and the layer that wrote it. -1: no layer did, it was needed as somebody's parent."""

    __slots__ = ("layer", "node")

    def __init__(self, node: Node, layer: int) -> None:
        self.node = node
        self.layer = layer


IMPLICIT: Final = -1
TOP: Final = 1 << 30
"""The layer of what the build itself adds: above all layers."""


class _Position:
    """A walk down from the root: where it is, and what is still to be gone."""

    def __init__(self, root: Node, path: Sequence[bytes]) -> None:
        self.names: list[bytes] = []
        self.todo = deque(path)
        self._nodes = [root]
        self._path = path
        self._links = self._steps = 0

    @property
    def node(self) -> Node:
        return self._nodes[-1]

    def next(self) -> bytes | None:
        """The next component that is a name; ``..``, which only links may have, is gone at once. None at the end."""
        while self.todo:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise unsafe(self._path, "too many symbolic links")
            name = self.todo.popleft()
            if name != b"..":
                return name
            if not self.names:
                raise unsafe(self._path, "a symbolic link leads out of the root")
            self.names.pop()
            self._nodes.pop()
        return None

    def enter(self, name: bytes, node: Node) -> None:
        self.names.append(name)
        self._nodes.append(node)

    def jump(self, target: bytes) -> None:
        """Go on where a symbolic link points. Absolute means: from the image's root."""
        self._links += 1
        if self._links > _MAX_LINKS:
            raise unsafe(self._path, "too many symbolic links")
        if target.startswith(b"/"):
            self.names.clear()
            del self._nodes[1:]
        self.todo.extendleft(reversed([part for part in target.split(b"/") if part not in {b"", b"."}]))


def unsafe(path: Iterable[bytes], why: str) -> ImageFault:
    return ImageFault("image.unsafe-path", f"{b'/'.join(path)[:300].decode(errors='replace')!r}: {why}")


class Tree:
    """The root directory and the operations that layers perform on it.

    ``released`` is told the content number of every file that lost its last name; ``grown`` is called for every node that is made.
    """

    def __init__(self, released: Callable[[int], None], grown: Callable[[], None] = lambda: None, mtime_ns: int = 0) -> None:
        self.root = Node(Kind.DIRECTORY, 0o755, mtime_ns=mtime_ns)
        self.root.links = 1
        self._released = released
        self._grown = grown
        self.mtime_ns = mtime_ns

    def put(self, path: Sequence[bytes], node: Node, layer: int) -> None:
        """Rule 1. ``path`` without empty, ``.`` and ``..`` components; no components mean the root itself."""
        if not path:
            if node.kind is not Kind.DIRECTORY:
                raise unsafe([b"."], "the root is a directory")
            _describe(self.root, node)
            return
        parent = self._parent(path, layer)
        name = path[-1]
        old = parent.children.get(name)
        if old and old.node.kind is Kind.DIRECTORY and node.kind is Kind.DIRECTORY:
            _describe(old.node, node)
            old.layer = layer
            return
        self._grown()
        node.links += 1  # before the old one goes: a hard link onto its own name must not lose its content
        if old:
            self._unlink(old.node)
        parent.children[name] = Entry(node, layer)

    def link(self, path: Sequence[bytes], target: Sequence[bytes], layer: int) -> None:
        """Rule 4. Raises ``image.bad-layer`` when there is nothing at ``target`` that can have another name."""
        entry = self.entry(target)
        if entry is None or entry.node.kind is Kind.DIRECTORY:
            raise ImageFault("image.bad-layer", f"hard link to {b'/'.join(target)[:300].decode(errors='replace')!r}, which is no file")
        node = entry.node
        if node.kind is Kind.SYMLINK:
            node = Node(node.kind, node.mode)
            node.target, node.size = entry.node.target, entry.node.size
            _describe(node, entry.node)
        node.links += 1  # held: making room for the new name may take the old one away
        try:
            self.put(path, node, layer)
        finally:
            node.links -= 1

    def hide(self, path: Sequence[bytes], layer: int) -> None:
        """Rule 3, for one name."""
        parent = self._walk(path[:-1])
        if parent and path[-1] in parent.children:
            self._hide(parent, path[-1], layer)

    def hide_children(self, path: Sequence[bytes], layer: int) -> None:
        """Rule 3, for all that a directory holds (an opaque whiteout)."""
        if directory := self._walk(path):
            for name in list(directory.children):
                self._hide(directory, name, layer)

    def entry(self, path: Sequence[bytes]) -> Entry | None:
        """What is at ``path``; a symbolic link at its end is not followed."""
        parent = self._walk(path[:-1]) if path else None
        return parent.children.get(path[-1]) if parent else None

    def follow(self, path: Sequence[bytes]) -> tuple[bytes, ...] | None:
        """Where ``path`` really is, links followed to the end; None when a part of it is missing or lies outside the root."""
        try:
            found = self._resolve(path, layer=None)
        except ImageFault:
            return None
        return found[0] if found else None

    def walk(self) -> Iterator[tuple[tuple[bytes, ...], Node]]:
        """Every name but the root's, parents first, in byte order: the same tree always in the same order."""
        stack: list[tuple[tuple[bytes, ...], Node]] = [((), self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            stack.extend(((*path, name), node.children[name].node) for name in sorted(node.children, reverse=True))

    def _parent(self, path: Sequence[bytes], layer: int) -> Node:
        """The directory that ``path``'s last component is in, made if missing (rule 2)."""
        found = self._resolve(path[:-1], layer)
        return found[1] if found else self.root

    def _walk(self, path: Sequence[bytes]) -> Node | None:
        found = self._resolve(path, layer=None)
        return found[1] if found and found[1].kind is Kind.DIRECTORY else None

    def _resolve(self, path: Sequence[bytes], layer: int | None) -> tuple[tuple[bytes, ...], Node] | None:
        """Rule 2: the true path, and what is there. With a ``layer`` missing directories are made; without, None means missing."""
        at = _Position(self.root, path)
        while (name := at.next()) is not None:
            entry = at.node.children.get(name)
            if entry is not None and entry.node.kind is Kind.SYMLINK:
                at.jump(entry.node.target)
                continue
            if layer is not None:
                entry = self._directory(at.node, name, entry, layer, path)
                if len(at.names) >= MAX_DEPTH:
                    raise ImageFault("image.too-large", f"a path is more than {MAX_DEPTH} directories deep")
            elif entry is None or (entry.node.kind is not Kind.DIRECTORY and at.todo):
                return None
            at.enter(name, entry.node)
        return tuple(at.names), at.node

    def _directory(self, parent: Node, name: bytes, entry: Entry | None, layer: int, path: Sequence[bytes]) -> Entry:
        """A directory at ``name``: the one there, or a new one, also in the place of a lower layer's file."""
        if entry is not None:
            if entry.node.kind is Kind.DIRECTORY:
                return entry
            if entry.layer == layer:
                raise ImageFault(
                    "image.bad-layer", f"{b'/'.join(path)[:300].decode(errors='replace')!r} goes through a file of its own layer"
                )
            self._unlink(entry.node)
        self._grown()
        made = Entry(Node(Kind.DIRECTORY, 0o755, mtime_ns=self.mtime_ns), IMPLICIT)
        made.node.links = 1
        parent.children[name] = made
        return made

    def _hide(self, parent: Node, name: bytes, layer: int) -> bool:
        """Remove what lower layers put at ``name`` and below; True when nothing is left there."""
        entry = parent.children[name]
        node = entry.node
        kept = [child for child in list(node.children) if not self._hide(node, child, layer)]
        if entry.layer == layer:
            return False
        if kept:  # this layer's own files below a directory of a lower one: the directory is theirs now, and nobody described it
            _describe(node, Node(Kind.DIRECTORY, 0o755, mtime_ns=self.mtime_ns))
            entry.layer = IMPLICIT
            return False
        self._unlink(node)
        del parent.children[name]
        return True

    def _unlink(self, node: Node) -> None:
        node.links -= 1
        if node.links:
            return
        for entry in node.children.values():
            self._unlink(entry.node)
        node.children = {}
        if node.content >= 0:
            self._released(node.content)


def _describe(node: Node, by: Node) -> None:
    node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs = by.mode, by.uid, by.gid, by.mtime_ns, by.xattrs
