"""The host name of a sandbox that was started under another one."""

from __future__ import annotations

import os
import socket

from agents.host import syscalls
from agents.host.elsewhere import elsewhere


def rename(pid: int, hostname: str) -> None:
    """In the UTS namespace of that process. Needs root. Raises ``OSError``."""

    def visit() -> None:
        fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWUTS)
        finally:
            os.close(fd)
        socket.sethostname(hostname)

    elsewhere(visit)
