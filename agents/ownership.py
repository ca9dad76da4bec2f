"""Who may touch a node's directory: one process at a time, for as long as it lives."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


class InUseError(Exception):
    """Another agent process works in this directory."""


def own(directory: Path) -> IO[bytes]:
    """A file whose being open keeps others out. Raises ``InUseError``."""
    file = (directory / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InUseError(f"another agent works in {directory}") from error
    return file
