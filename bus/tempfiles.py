"""Files that appear whole or not at all, for their owner only: written beside their place under another name, synced, then renamed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

_SUFFIX: Final = ".part"
_YOUNG_S: Final = 60
"""A part so young may be between its making and its locking."""


@asynccontextmanager
async def replacing(path: Path) -> AsyncIterator[IO[bytes]]:
    """A file to write to. Leaving the block puts it at ``path``, on disk; an exception leaves ``path`` as it was, and nothing beside it.

    What a killed process left beside ``path`` is removed too: parts are locked while they are written, so an old unlocked one is nobody's.
    """
    file = await asyncio.to_thread(_open, path)
    try:
        yield file
        await asyncio.shield(asyncio.to_thread(_finish, file, path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)  # noqa: PTH108 - one system call, also while being cancelled
        raise
    finally:
        file.close()


def put(path: Path, data: bytes) -> None:
    """Have ``data`` at ``path``; an exception leaves ``path`` as it was."""
    with _open(path) as file:
        try:
            file.write(data)
            _finish(file, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _open(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{path.name}.*{_SUFFIX}"):
        with contextlib.suppress(OSError), part.open("rb") as stale:
            fcntl.flock(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - part.stat().st_mtime > _YOUNG_S:
                part.unlink()
    file = tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent, delete=False)  # noqa: SIM115 - the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _finish(file: IO[bytes], path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)  # noqa: PTH105 - beside the other calls on names
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
