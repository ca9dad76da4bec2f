"""Cancellations that others drop: nats-py catches some, and ``asyncio.wait_for`` of Python 3.11 drops one that comes together with what is
waited for (the product waits by ``asyncio.timeout``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Raise at the block's end a cancellation that came within it and was dropped."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
