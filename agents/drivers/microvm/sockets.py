"""Unix sockets at paths of any length: the kernel takes 107 bytes, a directory's descriptor makes every one short enough (unix(7))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_CHUNK: Final = 262_144


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """A listening socket; who connects before anybody accepts waits in its queue, so that nobody has to poll."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    with _short(path) as name:
        made.bind(name)
    made.listen(8)
    return made


def connect(path: Path) -> socket.socket:
    """Raises ``OSError`` when nobody listens there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            made.connect(name)
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made


class Connection:
    """A connected socket on the event loop that it was made in. What is written before the other side reads waits here, or there."""

    def __init__(self, path: Path, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        """Raises ``OSError`` when nobody listens."""
        self._socket = connect(path)
        self._loop = asyncio.get_running_loop()
        self._received = received
        self._lost = lost
        self._waiting = bytearray()
        self._open = True
        self._loop.add_reader(self._socket.fileno(), self._readable)

    @property
    def usable(self) -> bool:
        """Whether it is open, and of the loop that runs now."""
        return self._open and self._loop is asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        if not self._open:
            return
        was_empty = not self._waiting
        self._waiting += data
        if was_empty:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._socket.send(self._waiting)]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._writable)
            return
        except OSError:
            self._end()
            return
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._end()

    def _end(self) -> None:
        self.close()
        self._lost()

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._socket.fileno())
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
