"""A wire that can be cut: a TCP proxy whose ends hear nothing from each other while it is, and are not told why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

PIECE = 65_536


class Wire:
    """``url`` leads to ``target`` while the wire is whole. What was sent before a cut and did not arrive is lost with its connection."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self._whole = asyncio.Event()
        self._whole.set()
        self._open: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    def cut(self) -> None:
        """From now on nothing passes, in either direction; connections stay open, and new ones are accepted."""
        self._whole.clear()

    def heal(self) -> None:
        """Whole again, for new connections: those from before are reset, as by a router that has forgotten them."""
        for writer in self._writers:
            writer.transport.abort()
        self._whole.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._whole.wait()
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            self._writers.add(there_writer)
            pumps = [asyncio.create_task(self._pump(*ends)) for ends in ((reader, there_writer), (there_reader, writer))]
            self._open.update(pumps)
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, there_writer):
                end.close()
                self._writers.discard(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()

    async def close(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


@asynccontextmanager
async def wired(target: str) -> AsyncIterator[Wire]:
    """A wire on a port of loopback, while the block runs."""
    wire = Wire(target)
    server = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
    wire.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        wire.heal()
        await wire.close()
