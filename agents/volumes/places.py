"""Where a disk appears inside: directories made in a sandbox's root before anything runs in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make(root: Path, target: str, owner: int) -> None:
    """Have a directory at ``target`` in ``root``. What is missing belongs to ``owner``, the host's number of the sandbox's user 0.

    Raises ``disk.bad-mount-path`` when a file or a symbolic link is in the way: links of an image could lead anywhere.
    """
    here = os.open(root, _FLAGS)
    try:
        for name in target.strip("/").split("/"):
            there = _step(here, name, owner, target)
            os.close(here)
            here = there
    finally:
        os.close(here)


def _step(here: int, name: str, owner: int, target: str) -> int:
    try:
        made = _made(here, name)
        there = os.open(name, _FLAGS, dir_fd=here)
    except OSError as error:
        raise RuntimeFault("disk.bad-mount-path", f"{target}: {error.strerror} at {name!r}") from error
    if made and owner:
        os.fchown(there, owner, owner)
    return there


def _made(here: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=here)
    except FileExistsError:
        return False
    return True
