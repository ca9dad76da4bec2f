"""The host name of a sandbox that was started under another one."""

from __future__ import annotations

import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from agents.host import syscalls

_ELSEWHERE: Final = ThreadPoolExecutor(1, "hostname")
"""A thread that visits other UTS namespaces, one after the other, and comes back each time."""


def rename(pid: int, hostname: str) -> Future[None]:
    """In the UTS namespace of that process, while others go on. Needs root. The future raises ``OSError``."""
    return _ELSEWHERE.submit(_visit, pid, hostname)


def _visit(pid: int, hostname: str) -> None:
    own = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWUTS)
        finally:
            os.close(fd)
        try:
            socket.sethostname(hostname)
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWUTS)
    finally:
        os.close(own)
