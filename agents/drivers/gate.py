"""What holds a started workload back until it is on record, or until somebody wants it.

A FIFO whose both ends the held process has itself: it waits on when the agent dies, and never runs on by that. Whoever knows the directory
lets it go, the next agent too.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_NAME: Final = "gate"


@dataclass(frozen=True, slots=True)
class Held:
    """A start whose program has not run yet: what its handle will say, and the pipe by which its launcher complains."""

    state: dict[str, Any]
    info: int

    @property
    def first(self) -> int:
        """The first process of its namespace."""
        return int(self.state["first"])

    @property
    def monitor(self) -> tuple[int, int]:
        """The process outside that waits for it, and since when there is one of that number."""
        return self.state["monitor"], self.state["monitor_started"]

    def close(self) -> None:
        os.close(self.info)


def make(directory: Path) -> int:
    """The descriptor that the held process is given; it goes on after one byte."""
    os.mkfifo(directory / _NAME, 0o600)
    return os.open(directory / _NAME, os.O_RDWR | os.O_CLOEXEC)


def let_go(directory: Path) -> None:
    """Let the program run, if it is still held back."""
    with contextlib.suppress(OSError):  # nobody waits there any more
        gate = os.open(directory / _NAME, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(gate, b"x")
        finally:
            os.close(gate)
