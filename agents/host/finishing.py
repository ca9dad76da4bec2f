"""Work that must not be left half done: a thread goes on when whoever waits for it is cancelled, and what it makes is then nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T], cancelled: Callable[[], None] = lambda: None) -> T:
    """``work``; when this call is cancelled, ``cancelled`` is called, and the cancellation goes on once ``work`` has ended."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled()
        while not running.done():
            with suppress(asyncio.CancelledError):  # an impatient second one must not leave it behind
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise
