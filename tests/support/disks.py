"""Small disks that can be filled to the last byte and emptied again."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096


class Disk:
    """A tmpfs on ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @property
    def free(self) -> int:
        said = os.statvfs(self.path)
        return said.f_bavail * said.f_frsize

    def fill(self) -> None:
        """Until not one page is left; may be done again."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"\0" * PAGE)
        finally:
            os.close(file)

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@contextlib.contextmanager
def tiny_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mounted as long as the block runs."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tiny", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
