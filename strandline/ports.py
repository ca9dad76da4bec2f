"""Whose is a port of loopback: what ``strandline up`` asks before and after it starts a server on it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
"""The state of a listening socket in /proc/net/tcp (Linux, include/net/tcp_states.h)."""


class PortTakenError(Exception):
    """Somebody else listens on the port that was asked for."""


def taken(port: int) -> bool:
    """Whether a server could not listen on 127.0.0.1 there now. Connections that a former server left behind do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nats-server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens on the port: an answer alone may be anybody's."""
    inodes: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()))
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == _LISTEN and f"socket:[{words[9]}]" in inodes:
                return True
    return False
