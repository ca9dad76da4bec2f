"""What files contain, while layers are put together: numbered files in one private folder.

A name of a layer never becomes a name here. At the end small files move to their places in the staged tree without being copied;
large ones wait here until the file system takes them in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ZERO: Final = bytes(256 * 1024)


class Contents:
    """Files by number, in a new folder that its owner removes. Errors of the host's file system come out as ``OSError``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._next = 0

    def add(self, chunks: Iterable[bytes]) -> tuple[int, int]:
        """Store a file: its number and size. Chunks of zeros become holes, so that a file of nothing takes no room."""
        number, self._next = self._next, self._next + 1
        fd = os.open(str(number), _NEW, 0o600, dir_fd=self.fd)
        try:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                if chunk == _ZERO[: len(chunk)]:
                    os.lseek(fd, size, os.SEEK_SET)
                else:
                    _write(fd, chunk)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
        return number, size

    def read(self, number: int, limit: int) -> bytes:
        """At most the first ``limit`` bytes."""
        with os.fdopen(os.open(str(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd), "rb") as file:
            return file.read(limit)

    def release(self, number: int) -> None:
        os.unlink(str(number), dir_fd=self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _write(fd: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]
