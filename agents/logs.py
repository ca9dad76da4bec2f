"""Shipping what sandboxes print: their drivers append it to files, this reads the files and hands pieces to the bus.

Lines are kept whole where they can be. How far each file was shipped is in the journal, a little behind: a killed agent repeats the last
seconds and loses nothing. What was shipped gives its disk space back, so that a talkative sandbox does not fill the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from agents.host.syscalls import punch
from agents.journal import Journal
from agents.records import Memory
from domain.sandboxes.loglines import LONGEST

log = structlog.get_logger(__name__)

Stream = Literal["stdout", "stderr", "runtime"]
Ship = Callable[[str, str, Stream, bytes], Awaitable[Any]]
"""(project, sandbox, stream, bytes); returns when the bus has them, raises when that is not sure."""

STREAMS: Final[tuple[Stream, ...]] = ("stdout", "stderr", "runtime")
PIECE: Final = 64 * 1024
FIRST_LOOK_S: Final = 0.1
LAST_LOOK_S: Final = 1.0
"""A file that grows is looked at often, a silent one less and less often."""
PARTIAL_S: Final = 1.0
"""How long the beginning of a line waits for its end."""
NOTE_S: Final = 2.0
HOLE: Final = 1 << 20
WAITING: Final = 64 << 20
"""Bytes of a stream that wait in their file at most, while the bus does not take them; beyond them the oldest are given up."""
OWN: Final = "[strandline] "
"""How our own lines in a sandbox's log begin (reference/miren-sandbox.md §8.2)."""


@dataclass(slots=True)
class _File:
    path: Path
    offset: int
    noted: int
    hole: int = 0
    line: int = 0
    """How long the line is already whose beginning was shipped."""
    look_at: float = 0
    pause: float = FIRST_LOOK_S
    partial_since: float | None = None


class LogShipper:
    """One loop for all sandboxes of the node. ``directory`` has a directory per sandbox, as ``LocalNode.logs`` says."""

    def __init__(self, directory: Path, journal: Journal[Memory], ship: Ship) -> None:
        self._directory = directory
        self._journal = journal
        self._ship = ship
        self._files: dict[tuple[str, str], _File] = {}
        self._noted_at = 0.0
        self._runtime: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue(1000)
        self._locks: dict[str, asyncio.Lock] = {}

    def runtime_line(self, sandbox_id: str, text: str) -> None:
        """A line of the agent's own in the sandbox's ``runtime`` stream; dropped when there is no room."""
        record = self._journal.state.sandboxes.get(sandbox_id)
        if record is not None and not record.throwaway:
            with contextlib.suppress(asyncio.QueueFull):
                self._runtime.put_nowait((record.project, sandbox_id, f"{OWN}{text}\n".encode()))

    async def run(self) -> None:
        """Ship until cancelled."""
        await asyncio.gather(self._run_files(), self._run_runtime())

    async def _run_runtime(self) -> None:
        while True:
            project, sandbox_id, line = await self._runtime.get()
            with contextlib.suppress(Exception):  # it says nothing that reports do not say
                await self._ship(project, sandbox_id, "runtime", line)

    async def _run_files(self) -> None:
        while True:
            now = time.monotonic()
            for sandbox_id in list(self._journal.state.sandboxes):
                if any(file.look_at <= now for file in self._of(sandbox_id)):
                    await self._look(sandbox_id, now)
            self._forget()
            if now - self._noted_at >= NOTE_S:
                self._note()
                self._noted_at = now
            await asyncio.sleep(FIRST_LOOK_S)

    async def drain(self, sandbox_id: str, seconds: float = 2.0) -> None:
        """Ship what is left of a sandbox that is about to go, as far as the bus takes it in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._look(sandbox_id, time.monotonic(), last=True)

    def close(self) -> None:
        """Write down how far everything was shipped."""
        self._note()

    def _of(self, sandbox_id: str) -> list[_File]:
        record = self._journal.state.sandboxes.get(sandbox_id)
        if record is None or record.throwaway:
            return []
        for stream in STREAMS:
            if (sandbox_id, stream) not in self._files:
                offset = self._journal.state.offsets.get(sandbox_id, {}).get(stream, 0)
                self._files[sandbox_id, stream] = _File(self._directory / sandbox_id / stream, offset, offset, offset)
        return [self._files[sandbox_id, stream] for stream in STREAMS]

    def _forget(self) -> None:
        for key in [key for key in self._files if key[0] not in self._journal.state.sandboxes]:
            del self._files[key]
            self._locks.pop(key[0], None)

    async def _look(self, sandbox_id: str, now: float, *, last: bool = False) -> None:
        record = self._journal.state.sandboxes.get(sandbox_id)
        if record is None:
            return
        ended = last or record.condition == "exited"
        async with self._locks.setdefault(sandbox_id, asyncio.Lock()):
            for stream, file in zip(STREAMS, self._of(sandbox_id), strict=False):
                try:
                    grew = await self._advance(file, record.project, sandbox_id, stream, now, ended=ended)
                except Exception as error:  # noqa: BLE001 - the bus is away, or a disk; later
                    log.info("logs.later", sandbox=sandbox_id, stream=stream, error=repr(error)[:200])
                    grew = False
                file.pause = FIRST_LOOK_S if grew else min(file.pause * 1.5, LAST_LOOK_S)
                file.look_at = now + file.pause

    async def _advance(self, file: _File, project: str, sandbox_id: str, stream: Stream, now: float, *, ended: bool) -> bool:
        """Ship everything that is ready. True: something was."""
        grew = False
        self._give_up(file, sandbox_id, stream)
        while data := _ready(file):
            whole = len(data) if len(data) == PIECE and b"\n" not in data else data.rfind(b"\n") + 1
            if not whole:
                if file.partial_since is None:
                    file.partial_since = now
                if not ended and now - file.partial_since < PARTIAL_S:
                    return True  # the rest of the line is on its way: look again soon
                whole = len(data)
            kept, line = capped(data[:whole], file.line)
            if kept:
                await self._ship(project, sandbox_id, stream, kept)
            file.line = line
            file.partial_since = None
            grew = True
            self._done(file, whole)
            self._give_up(file, sandbox_id, stream)
        return grew

    @staticmethod
    def _done(file: _File, count: int) -> None:
        file.offset += count
        if file.offset - file.hole >= HOLE:
            _free(file.path, file.offset)
            file.hole = file.offset

    def _give_up(self, file: _File, sandbox_id: str, stream: Stream) -> None:
        """A workload that writes faster than the bus takes it, or while that is away, does not fill the node's disk."""
        with contextlib.suppress(OSError):
            lost = file.path.stat().st_size - file.offset - WAITING
            if lost > 0:
                self._done(file, lost)
                self.runtime_line(sandbox_id, f"{lost} bytes of {stream} lost: the bus did not take them in time")

    def _note(self) -> None:
        moved: dict[str, dict[str, int]] = {}
        for (sandbox_id, stream), file in self._files.items():
            if file.offset != file.noted:
                moved.setdefault(sandbox_id, {})[stream] = file.offset
                file.noted = file.offset
        if moved:
            self._journal.write(*({"k": "log", "id": sandbox_id, "at": offsets} for sandbox_id, offsets in moved.items()))


def capped(data: bytes, line: int) -> tuple[bytes, int]:
    """Some output without what is beyond ``LONGEST`` of its first line, ``line`` bytes of which went before, and how long its last one is.

    ``data`` is so short that no other line of it can be too long.
    """
    first = data.find(b"\n")
    head = len(data) if first < 0 else first
    length = line + head if first < 0 else len(data) - data.rfind(b"\n") - 1
    room = max(LONGEST - line, 0)
    return (data if head <= room else data[:room] + data[head:]), length


def _ready(file: _File) -> bytes:
    """What stands behind what was shipped.

    A file that is shorter than that was emptied by its own sandbox, in which ``> /dev/stderr`` opens it anew: it begins again.
    """
    try:
        with file.path.open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size < file.offset:
                file.offset = file.hole = file.line = 0
            return os.pread(opened.fileno(), PIECE, file.offset)
    except OSError:
        return b""


def _free(path: Path, until: int) -> None:
    """Give the file's first bytes back to the file system; offsets stay. Where that is not possible they are kept."""
    with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
        punch(file.fileno(), until)
