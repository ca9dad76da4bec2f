"""Python inside another network namespace, for the length of one call."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.host import syscalls


def inside(netns: Path, call: Callable[[], Any]) -> Any:
    """What ``call`` returns in that namespace. Sockets that it makes stay there."""
    outcome: list[Any] = []

    def visit() -> None:
        fd = os.open(netns, os.O_RDONLY)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            outcome.append(call())
        except Exception as error:  # noqa: BLE001  # handed on below
            outcome.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def listen(address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    made = socket.create_server((address, port))
    made.settimeout(5)
    return made


def reach(address: str, port: int, timeout: float = 3) -> str:
    """``open``, or the name of what came instead."""
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else type(error).__name__
    return "open"
