"""Putting a small file into a running sandbox's own /dev: a tmpfs, so that it is on no disk, in no snapshot and in no template.

From outside, through ``/proc/<pid>/root``. Whoever is root in there may have put symbolic links in the way: none is followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from agents.host import syscalls

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def put(pid: int, folder: str, name: str, data: bytes, owner: int | None = None) -> None:
    """Have ``/dev/<folder>/<name>`` inside, whole or not at all, for everybody there to read.

    ``owner``: the host's number of its root; None: whoever this process is.

    Raises ``OSError``, also for a link that lies in the way, and for a process that is in no root of its own.
    """
    with _opened(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) as root:
        if os.path.samestat(os.fstat(root), os.stat("/")):  # noqa: PTH116  # the pid is somebody else's by now
            raise ProcessLookupError(f"{pid} is no process of a sandbox")
        with syscalls.acting_as(owner), _opened("dev", _DIRECTORY, root) as dev:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755, dir_fd=dev)
            with _opened(folder, _DIRECTORY, dev) as place:
                _write(place, name, data)


def _write(place: int, name: str, data: bytes) -> None:
    draft = f".{name}.new"
    with contextlib.suppress(FileNotFoundError):  # of an agent that died over it
        os.unlink(draft, dir_fd=place)
    with _opened(draft, _NEW, place) as file:
        os.fchmod(file, 0o444)
        os.write(file, data)
    os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)


@contextlib.contextmanager
def _opened(path: str, flags: int, within: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags, 0o600, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)
