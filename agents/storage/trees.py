"""Directory trees as data: copied with everything that belongs to them, merged like overlay layers, measured, removed.

Copies are made by ``cp``: hard links, ownership, times, extended attributes (overlay's own included), device nodes, holes and reflinks are
all its trade, and a loop in Python would be slower at each.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn

_OPAQUE: Final = "trusted.overlay.opaque"
_COPY_S: Final = 3600.0


async def copy(source: Path, target: Path) -> None:
    """Copy what is in ``source`` into the directory ``target``, which may hold things already; the directory's own attributes too."""
    argv = ["cp", "-a", "--reflink=auto", "--sparse=auto", "--", f"{source}/.", str(target)]
    done = await spawn.run(argv, timeout_s=_COPY_S)
    if done.code != 0:
        full = "No space left" in done.complaint()
        if full:
            raise RuntimeFault("node.disk-full", f"no room for a copy of {source.name}", retryable=True)
        raise RuntimeFault("storage.copy-failed", done.complaint())


async def merge(layers: Sequence[Path], target: Path) -> None:
    """Overlay layers, the lowest first, into one layer that means the same above whatever lies below them."""
    for layer in layers:
        _clear(layer, target)
        await copy(layer, target)


def _clear(layer: Path, target: Path) -> None:
    """Remove from ``target`` what ``layer`` replaces, deletes (a whiteout: character device 0/0) or hides (an opaque directory)."""
    for entry in os.scandir(layer):
        below = target / entry.name
        if not os.path.lexists(below):
            continue
        both = entry.is_dir(follow_symlinks=False) and below.is_dir() and not below.is_symlink()
        if both and not _opaque(entry.path):
            _clear(Path(entry.path), below)
        else:
            remove(below)


def _opaque(path: str) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def size(tree: Path) -> int:
    """Bytes on disk; what has several names counts once."""
    total, seen = 0, set()
    for directory, _, files in os.walk(tree):
        for path in (directory, *(f"{directory}/{name}" for name in files)):
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def remove(path: Path) -> None:
    """Remove a tree or a file, also directories that their owner may not write."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if os.geteuid() != 0:
        make_accessible(path)
    shutil.rmtree(path)


def make_accessible(tree: Path) -> None:
    """Give the owner what root would not need: read on everything, write and search on directories."""
    for directory, _, files in os.walk(tree):
        _allow(directory, stat.S_IRWXU)
        for name in files:
            _allow(f"{directory}/{name}", stat.S_IRUSR)


def _allow(path: str, bits: int) -> None:
    mode = os.lstat(path).st_mode
    if not stat.S_ISLNK(mode) and mode & bits != bits:
        Path(path).chmod(stat.S_IMODE(mode) | bits)
