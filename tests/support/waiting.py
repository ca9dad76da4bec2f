"""How tests wait: on a condition, never for a while."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

LOOK_S = 0.01
"""How often a condition is looked at."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run an asynchronous test on uvloop, as the product does."""
    return uvloop.run(coroutine)


async def eventually(condition: Callable[[], Awaitable[T] | T], within: float = 10) -> T:
    """The first truthy value of ``condition``, plain or asynchronous. Raises ``AssertionError`` after ``within`` seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s: {inspect.getsource(condition).strip()}")
        await _a_moment()


async def _a_moment() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), LOOK_S)
