"""Output of sandboxes as lines: what is kept, and what comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from typing import Literal

from bus import logs as bus_logs
from bus.logs import LogChunk
from domain.kernel.errors import Refused
from strandline.client.changes import changes
from strandline.client.items import Item, Sandbox
from strandline.client.noun import Noun

Stream = Literal["stdout", "stderr", "runtime"]


class LogLine(Item):
    """One line without its end. ``seq`` is where to go on after it; ``time`` is when its end was written."""

    seq: int
    time: datetime
    stream: str
    text: str


class Lines:
    """Puts chunks together to lines, stream by stream: a chunk may end in the middle of one."""

    def __init__(self) -> None:
        self._open: dict[str, bytes] = {}
        self._last: dict[str, LogChunk] = {}

    def take(self, chunk: LogChunk) -> list[LogLine]:
        """The lines that end in this chunk."""
        *whole, rest = (self._open.pop(chunk.stream, b"") + chunk.data).split(b"\n")
        if rest:
            self._open[chunk.stream] = rest
        self._last[chunk.stream] = chunk
        return [_line(chunk, text) for text in whole]

    def rest(self) -> list[LogLine]:
        """The lines that have no end, at the end."""
        return [_line(self._last[stream], text) for stream, text in self._open.items()]


def _line(chunk: LogChunk, text: bytes) -> LogLine:
    return LogLine(seq=chunk.seq, time=chunk.time, stream=chunk.stream, text=text.decode(errors="replace").removesuffix("\r"))


class Logs(Noun):
    """The stream ``LOGS`` of one project. It is bounded by age, bytes and messages per sandbox: old output goes."""

    async def read(
        self, sandbox_id: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0
    ) -> AsyncGenerator[LogLine, None]:
        """What is kept, oldest first."""
        lines = Lines()
        async for chunk in bus_logs.read(self._calls.nc, self._calls.project, sandbox_id, stream=stream, since=since, after=after):
            for line in lines.take(chunk):
                yield line
        for line in lines.rest():
            yield line

    async def follow(
        self, sandbox_id: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0
    ) -> AsyncGenerator[LogLine, None]:
        """What is kept and then what comes, until the sandbox is DEAD and its last output has been read."""
        lines, seq = Lines(), after
        async with contextlib.aclosing(self._until_dead(sandbox_id, stream, since, after)) as chunks:
            async for chunk in chunks:
                seq = chunk.seq
                for line in lines.take(chunk):
                    yield line
        async for chunk in bus_logs.read(self._calls.nc, self._calls.project, sandbox_id, stream=stream, since=since, after=seq):
            for line in lines.take(chunk):
                yield line
        for line in lines.rest():
            yield line

    async def _until_dead(
        self, sandbox_id: str, stream: Stream | None, since: datetime | None, after: int
    ) -> AsyncGenerator[LogChunk, None]:
        """Chunks as they come, until the sandbox has died."""
        chunks: AsyncIterator[LogChunk] = bus_logs.follow(
            self._calls.nc, self._calls.project, sandbox_id, stream=stream, since=since, after=after
        )
        death = asyncio.create_task(self._death(sandbox_id))
        try:
            while True:
                coming = asyncio.ensure_future(anext(chunks))
                await asyncio.wait([coming, death], return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    death.result()
                    return
                yield coming.result()
        finally:
            death.cancel()
            await asyncio.gather(death, return_exceptions=True)

    async def _death(self, sandbox_id: str) -> None:
        """Return once the sandbox is DEAD. Raises ``sandbox.not-found`` for one that never was."""
        async with contextlib.aclosing(changes(self._calls, "sandbox", id=sandbox_id)) as moves:
            async for _ in moves:
                try:
                    sandbox = await self._calls.one("sandboxes", Sandbox, "sandbox", sandbox_id)
                except Refused as refused:
                    if not refused.retryable:
                        raise
                    continue
                if sandbox.state == "DEAD":
                    return
