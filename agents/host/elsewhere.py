"""Work in a namespace of its own or of others: a thread may enter one by itself, and need not find its way back if it ends there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agents.host import syscalls

T = TypeVar("T")


def elsewhere(work: Callable[[], T]) -> T:
    """The result of ``work``, done in a thread that ends with it. Raises what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits
            errors.append(error)

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_network(netns: Path | None, work: Callable[[], T]) -> T:
    """The result of ``work``, done in that network namespace; here when there is none. A process that it starts is there too."""
    if netns is None:
        return work()

    def visit() -> T:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        finally:
            os.close(fd)
        return work()

    return elsewhere(visit)
