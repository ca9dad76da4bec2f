"""Which saved boots, and so which guest images, are still needed: each machine that goes on from one holds a lock on a file of it.

QEMU inherits the lock (flock(2) belongs to the open file), so that it lasts exactly as long as the machine does, whichever agent started
it, and whether that one lives or not. A snapshot's memory is a copy and needs no image.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_USERS: Final = "users"
_KEPT: Final = 2
"""The current image and the one before it: whoever goes back to that one need not build it again."""


def allow(base: Path) -> None:
    """Let machines say that they use this saved boot. One without this is never removed."""
    (base / _USERS).touch(mode=0o644)


def hold(memory: Path) -> int | None:
    """A descriptor for a machine to keep; None for a memory that is nobody's boot. The caller closes its own."""
    try:
        fd = os.open(memory / _USERS, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def discard_if_free(base: Path) -> bool:
    """Remove a saved boot that no machine uses."""
    try:
        fd = os.open(base / _USERS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(base, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def prune(shelf: Path, current: Path) -> None:
    """Remove saved boots of old images that no machine uses, then images and kernels that nothing is left of."""
    images = _newest_last(path for path in shelf.iterdir() if (path / "initrd").is_file() and not path.is_symlink())
    for image in [path for path in images[:-_KEPT] if path != current]:
        left = [base for base in (image / "bases").glob("*") if base.is_dir() and not discard_if_free(base)]
        if not left:
            shutil.rmtree(image, ignore_errors=True)
    for kernel in _newest_last(shelf.glob("kernel-*"))[:-_KEPT]:
        shutil.rmtree(kernel, ignore_errors=True)


def _newest_last(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime)
