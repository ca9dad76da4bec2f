"""What can be killed: from one moment to the next nothing of it runs, and nobody hears of it any more.

It has a connection of its own, and every task that it, or that connection, has begun is known. What it had sent counts; what it would have
done next, tidying up included, never happens, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from typing import Any

import orjson

from bus.append import Entry
from bus.connection import Connection, connect
from bus.server import Server
from handlers.control import Deadlines
from handlers.plane import ControlPlane

Event = dict[str, Any]


class Life:
    """``async with life.lived(server) as nc:`` whatever is begun in the block belongs to it, and ends with :meth:`kill`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._nc: Connection | None = None
        self.over = asyncio.Event()

    @asynccontextmanager
    async def lived(self, server: Server, name: str) -> AsyncIterator[Connection]:
        asyncio.get_running_loop().set_task_factory(_remembering)
        token = _LIFE.set(self)
        try:
            self._nc = self._nc or await connect(server.url, name=name, on_closed=lambda: None)
            yield self._nc
        finally:
            _LIFE.reset(token)

    def belongs(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Now. The bus hears no more of it."""
        assert self._nc is not None
        self._nc.options["allow_reconnect"] = False
        self._nc._transport._io_writer.transport.abort()
        self.over.set()

    async def kill(self) -> None:
        """End it, and wait until nothing of it runs. Raises ``AssertionError`` when something does not let itself be cancelled."""
        self.end()
        for _ in range(500):
            for task in list(self._tasks):
                task.cancel()
            if not self._tasks:
                return
            await asyncio.wait(self._tasks, timeout=0.01)
        raise AssertionError(f"these do not end: {self._tasks}")


_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


def _remembering(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context | None = None) -> asyncio.Task[Any]:
    task = asyncio.Task(coro, loop=loop) if context is None else asyncio.Task(coro, loop=loop, context=context)
    life = _LIFE.get() if context is None else context.get(_LIFE)
    if life is not None:
        life.belongs(task)
    return task


class Mortal:
    """A control plane. :meth:`dies_after` says which event is the last that it stores."""

    def __init__(self, server: Server, deadlines: Deadlines) -> None:
        self._server = server
        self._deadlines = deadlines
        self._last: Callable[[Event], bool] = lambda event: False
        self.life = Life()

    async def start(self) -> ControlPlane:
        async with self.life.lived(self._server, "control") as nc:
            self.plane = await ControlPlane.open(nc, deadlines=self._deadlines)
            appender = self.plane.control.store._appender
            self._append, appender.append = appender.append, self._appended
            await self.plane.start()
        return self.plane

    def dies_after(self, last: Callable[[Event], bool]) -> None:
        self._last = last

    async def _appended(self, entries: Sequence[Entry]) -> list[int]:
        """Store it; when it was the last thing, nobody learns that it is stored."""
        seqs = await self._append(entries)
        if any(self._last(event) for entry in entries for event in orjson.loads(entry.data)["events"]):
            self.life.end()
            await asyncio.Event().wait()
        return seqs
