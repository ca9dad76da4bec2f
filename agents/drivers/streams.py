"""Standard streams of main processes: they must work on without the agent, so nothing of it may be at their other end.

stdout and stderr are files, opened to append. A program that opens ``/dev/stderr`` anew opens that file, and may empty it (``>``): what is
written then is at its beginning. stdin is a pipe whose both ends the process itself holds: an image's default command is often
a shell, which would end at once if it read the end of its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agents.drivers.driver import Exit, Spec

NAMES: Final = ("stdout", "stderr")
_POLL_S: Final = 0.1
_CHUNK: Final = 65536


class Descriptors:
    """File descriptors that are closed when they are done with, or with the ``with``."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(*self._open)

    def keep(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self.keep(read), self.keep(write)

    def close(self, *fds: int) -> None:
        for fd in fds:
            self._open.discard(fd)
            os.close(fd)

    def stdio(self, spec: Spec) -> tuple[int, int, int]:
        """The three streams of a main process."""
        read, write = self.pipe()
        both = self.keep(os.open(f"/proc/self/fd/{read}", os.O_RDWR | os.O_CLOEXEC))
        self.close(read, write)
        spec.logs.mkdir(parents=True, exist_ok=True)
        out, err = (self.keep(os.open(spec.logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)) for name in NAMES)
        return both, out, err


async def follow(logs: Path, ended: asyncio.Task[Exit]) -> AsyncIterator[tuple[str, bytes]]:
    """What is in the log files and what is added to them, until ``ended`` is done and everything has been read."""
    offsets = dict.fromkeys(NAMES, 0)
    while True:
        last = ended.done()
        for name in NAMES:
            while chunk := _read(logs / name, offsets[name]):
                offsets[name] += len(chunk)
                yield name, chunk
        if last:
            return
        await asyncio.wait([ended], timeout=_POLL_S)


def last_words(spec: Spec) -> str:
    """The last line that was written to stderr."""
    with contextlib.suppress(OSError):
        lines = (spec.logs / "stderr").read_bytes()[-2000:].decode(errors="replace").splitlines()
        return lines[-1] if lines else ""
    return ""


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK)
    except FileNotFoundError:
        return b""
