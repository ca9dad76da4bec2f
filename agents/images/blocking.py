"""Blocking work in threads that can be told to stop.

``asyncio`` cannot interrupt a thread. A :class:`Stop` is handed down into the work, which asks it between chunks, waits on it instead of
sleeping, and registers what must be broken open (a socket) when the answer should be sooner.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from agents.host.finishing import to_its_end

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The work was cancelled."""


class Stop:
    """A flag that ends blocking work, shared by all threads of one build."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._breakers: dict[int, Callable[[], None]] = {}

    def set(self) -> None:
        self._event.set()
        with self._lock:
            breakers = list(self._breakers.values())
        for breaker in breakers:
            with suppress(OSError):
                breaker()

    def check(self) -> None:
        """Raises ``Stopped`` after ``set``."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, unless told to stop: then raises ``Stopped`` at once."""
        if self._event.wait(seconds):
            raise Stopped

    @contextmanager
    def breaking(self, breaker: Callable[[], None]) -> Iterator[None]:
        """While inside, ``set`` calls ``breaker``: it makes a blocked call return, for instance by shutting a socket down."""
        self.check()
        with self._lock:
            self._breakers[id(breaker)] = breaker
        try:
            self.check()  # it may have been set between the first look and the registration
            yield
        finally:
            with self._lock:
                self._breakers.pop(id(breaker), None)


async def in_thread(work: Callable[[Stop], T]) -> T:
    """Run ``work`` in a thread. When this call is cancelled the work is stopped, and has cleaned up before the cancellation goes on."""
    stop = Stop()
    return await to_its_end(asyncio.to_thread(work, stop), stop.set)
