"""Fences: how an action in progress is told to give up because something stronger has arrived.

Giving up is not the same as stopping this process: an action that is fenced is undone, one that is cancelled with its process is resumed by
the next one (reference/miren-sandbox.md §2.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

YIELD_S: Final = 30.0
"""How long a cancelled action may take to let go before its undo starts beside it."""


class FencedError(Exception):
    """The action was given up because of something stronger."""


class Fence:
    """Closed once and for ever."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        self._closed.set()

    async def wait(self) -> None:
        """Until it is closed."""
        await self._closed.wait()

    async def guard(self, action: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result of ``action``. Raises ``FencedError`` when the fence closes first, ``TimeoutError`` after ``seconds``.

        When it raises, or is cancelled itself, the action has been cancelled and has ended.
        """
        if self.closed:
            action.close()
            raise FencedError
        task = asyncio.create_task(action)
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait({task, closing}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self.closed:
                raise FencedError
            raise TimeoutError
        finally:
            closing.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=YIELD_S)
