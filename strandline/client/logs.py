"""Output of sandboxes as lines: what is kept, and what comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from datetime import datetime
from typing import Final

from bus import logs as bus_logs
from bus.logs import LogChunk
from domain.kernel.errors import Refused
from domain.sandboxes.loglines import LONGEST, OURS, Stream, framed
from strandline.client.changes import changes
from strandline.client.items import Item, Sandbox
from strandline.client.noun import Noun

MADE_OF: Final[dict[Stream, bus_logs.Stream]] = {"stdout": "stdout", "runtime": "runtime"}
"""Streams whose lines all come from one on the bus; a line of the others may have been written to any."""


class LogLine(Item):
    """One line without its end. ``seq`` is where to go on after it; ``time`` is when its end was written.

    ``attributes``: what a structured line said beside its text, and, under names that no line can give, where it comes from.
    """

    seq: int
    time: datetime
    stream: str
    text: str
    trace_id: str | None = None
    attributes: dict[str, str] = {}


class Lines:
    """Puts chunks together to lines, stream by stream: a chunk may end in the middle of one. ``raw``: as they were written."""

    def __init__(self, sandbox_id: str = "", stream: Stream | None = None, *, raw: bool = False) -> None:
        self._stream = stream
        self._raw = raw
        self._ours = {f"{OURS}sandbox": sandbox_id, f"{OURS}container": "main"}
        self._open: dict[str, bytes] = {}
        self._last: dict[str, LogChunk] = {}

    def take(self, chunk: LogChunk) -> list[LogLine]:
        """The lines that end in this chunk."""
        *whole, rest = (self._open.pop(chunk.stream, b"") + chunk.data).split(b"\n")
        if rest:
            self._open[chunk.stream] = rest[:LONGEST]
        self._last[chunk.stream] = chunk
        return self._lines((chunk, text) for text in whole)

    def rest(self) -> list[LogLine]:
        """The lines that have no end, at the end."""
        return self._lines((self._last[stream], text) for stream, text in self._open.items())

    def _lines(self, found: Iterable[tuple[LogChunk, bytes]]) -> list[LogLine]:
        lines = [self._line(chunk, text[:LONGEST]) for chunk, text in found]
        return [line for line in lines if self._stream in {None, line.stream}]

    def _line(self, chunk: LogChunk, text: bytes) -> LogLine:
        if self._raw:
            return LogLine(seq=chunk.seq, time=chunk.time, stream=chunk.stream, text=text.decode(errors="replace").removesuffix("\r"))
        said = framed(chunk.stream, text)
        source = "strandline" if chunk.stream == "runtime" else "sandbox"
        attributes = {**said.attributes, **self._ours, "source": source}
        return LogLine(seq=chunk.seq, time=chunk.time, stream=said.stream, text=said.text, trace_id=said.trace_id, attributes=attributes)


class Logs(Noun):
    """The stream ``LOGS`` of one project. It is bounded by age, bytes and messages per sandbox: old output goes."""

    async def read(
        self, sandbox_id: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0, raw: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        """What is kept, oldest first. ``raw``: lines as they were written, on the streams that they were written to."""
        lines = Lines(sandbox_id, stream, raw=raw)
        async for chunk in self._read(sandbox_id, stream, since, after):
            for line in lines.take(chunk):
                yield line
        for line in lines.rest():
            yield line

    async def follow(
        self, sandbox_id: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0, raw: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        """What is kept and then what comes, until the sandbox is DEAD and its last output has been read."""
        lines, seq = Lines(sandbox_id, stream, raw=raw), after
        async with contextlib.aclosing(self._until_dead(sandbox_id, stream, since, after)) as chunks:
            async for chunk in chunks:
                seq = chunk.seq
                for line in lines.take(chunk):
                    yield line
        async for chunk in self._read(sandbox_id, stream, since, seq):
            for line in lines.take(chunk):
                yield line
        for line in lines.rest():
            yield line

    def _read(self, sandbox_id: str, stream: Stream | None, since: datetime | None, after: int) -> AsyncIterator[LogChunk]:
        one = None if stream is None else MADE_OF.get(stream)
        return bus_logs.read(self._calls.nc, self._calls.project, sandbox_id, stream=one, since=since, after=after)

    async def _until_dead(
        self, sandbox_id: str, stream: Stream | None, since: datetime | None, after: int
    ) -> AsyncGenerator[LogChunk, None]:
        """Chunks as they come, until the sandbox has died."""
        chunks: AsyncIterator[LogChunk] = bus_logs.follow(
            self._calls.nc,
            self._calls.project,
            sandbox_id,
            stream=None if stream is None else MADE_OF.get(stream),
            since=since,
            after=after,
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
