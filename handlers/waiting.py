"""Waiting for an aggregate to settle: a caller with ``wait_s`` sleeps until the log says that what it started has ended."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from bus.commit import Commit


class Waiting:
    """Wakes waiters on every commit of the aggregate that they wait for."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str, str], set[asyncio.Event]] = defaultdict(set)

    def notify(self, commit: Commit) -> None:
        """A commit was stored, by whichever process."""
        self.wake(commit.type, commit.project, commit.id)

    def wake(self, kind: str, project: str, identifier: str) -> None:
        """An aggregate has changed."""
        for event in self._events.get((kind, project, identifier), ()):
            event.set()

    async def until(self, kind: str, project: str, identifier: str, settled: Callable[[], Awaitable[bool]], seconds: float) -> bool:
        """True as soon as ``settled`` says so, False after ``seconds``. It is asked first, and again after every commit."""
        if seconds <= 0:
            return await settled()
        event = asyncio.Event()
        key = (kind, project, identifier)
        self._events[key].add(event)
        try:
            async with asyncio.timeout(seconds):
                while not await settled():
                    await event.wait()
                    event.clear()
                return True
        except TimeoutError:
            return await settled()
        finally:
            self._events[key].discard(event)
            if not self._events[key]:
                del self._events[key]
