"""TCP ports that something listens on in another network namespace, and from where they can be reached.

One sock_diag socket per namespace, opened there once and asked again and again: 0.05 ms a time, against 7 ms for /proc/<pid>/net/tcp
where the namespace inherited a big hash table (reference/runtimes.md §8). Without the right to enter the namespace, /proc it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from agents.host import syscalls
from agents.host.finishing import to_its_end

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_TCP: Final = 6
_LISTEN: Final = 10


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """Something that listens on a port. ``reachable``: not on the loopback interface alone."""

    port: int
    reachable: bool = True


class Ports:
    """Keeps one socket per watched process until it is told to forget it."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[int, int], socket.socket | None] = {}

    async def listening(self, pid: int, started: int) -> frozenset[int]:
        """Empty when the process has gone meanwhile."""
        return frozenset(found.port for found in await self.listeners(pid, started))

    async def listeners(self, pid: int, started: int) -> frozenset[Listener]:
        """The same, and which of them can be reached from outside."""
        key = (pid, started)
        if key not in self._sockets:
            await to_its_end(self._open(key))
        diag = self._sockets.get(key)
        try:
            return _by_diag(diag) if diag is not None else await asyncio.to_thread(_by_proc, pid)
        except OSError:
            self.forget(pid, started)
            return frozenset()

    async def _open(self, key: tuple[int, int]) -> None:
        pid, started = key
        opened = await asyncio.to_thread(_open_inside, pid)
        self.forget(pid, started)  # somebody else may have asked meanwhile
        self._sockets[key] = opened

    def forget(self, pid: int, started: int) -> None:
        diag = self._sockets.pop((pid, started), None)
        if diag is not None:
            diag.close()

    def close(self) -> None:
        for pid, started in tuple(self._sockets):
            self.forget(pid, started)


def _open_inside(pid: int) -> socket.socket | None:
    """A socket belongs to the namespace that it was made in. The thread that went there does not come back."""
    opened: list[socket.socket] = []

    def visit() -> None:
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
            finally:
                os.close(fd)
            diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            diag.bind((0, 0))
            opened.append(diag)
        except OSError:
            return

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    return opened[0] if opened else None


def _by_diag(diag: socket.socket) -> frozenset[Listener]:
    found: set[Listener] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBI", family, _TCP, 0, 0, 1 << _LISTEN) + bytes(48)  # inet_diag_req_v2, sock_diag(7)
        diag.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        while _take(diag.recv(65536), found):
            pass
    return frozenset(found)


def _take(data: bytes, found: set[Listener]) -> bool:
    """Listeners out of one datagram of answers; False after the last answer."""
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if kind == _NLMSG_DONE:
            return False
        if kind == _NLMSG_ERROR:
            raise OSError(-struct.unpack_from("=i", data, offset + 16)[0], "sock_diag")
        size = 4 if data[offset + 16] == socket.AF_INET else 16
        address = data[offset + 24 : offset + 24 + size]
        found.add(Listener(struct.unpack_from(">H", data, offset + 20)[0], _is_reachable(address)))
        offset += (length + 3) & ~3
    return True


def _is_reachable(packed: bytes) -> bool:
    address = ip_address(packed)
    inside = getattr(address, "ipv4_mapped", None) or address
    return not inside.is_loopback


def _by_proc(pid: int) -> frozenset[Listener]:
    """Addresses there are 32-bit words in this machine's order (reference/miren-sandbox.md §6.5). Without IPv6 there is no ``tcp6``."""
    found: set[Listener] = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError) if name == "tcp6" else contextlib.nullcontext():
            for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                address, _, port = words[1].rpartition(":")
                if words[3] == f"{_LISTEN:02X}":
                    packed = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
                    found.add(Listener(int(port, 16), _is_reachable(packed)))
    return frozenset(found)
