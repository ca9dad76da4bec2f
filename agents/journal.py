"""The journal: a local, append-only file of what this agent was told and what it did about it.

One line per entry: CRC-32 of the JSON in 8 hex digits, a space, the JSON, a newline. The state is the fold of all entries, so a file that
was cut anywhere is a state that once was; a torn tail is normal, anything behind it is set aside for a person. Lines are written into space
that was allocated before, so that a full disk refuses new work and never interrupts begun work.

The contract with whoever has effects: an entry that says what will be touched is *written* before the effect and what came of it after.
Written means that it survives this process; ``sync`` means that it survives the machine. Concurrent syncs share one ``fdatasync``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import orjson
import structlog

from agents.drivers.driver import RuntimeFault

log = structlog.get_logger(__name__)

Entry = dict[str, Any]

CHUNK: Final = 1 << 20
"""Bytes that are allocated at a time; half of one is kept back for work that has begun."""
COMPACT_AT: Final = 8 << 20
"""A file is rewritten when it is this big and four times as big as its state was when it was last rewritten."""


class State(Protocol):
    """What a journal is folded into. ``apply`` ignores kinds of entries that it does not know: they are of a newer agent."""

    def apply(self, entry: Entry) -> None: ...

    def entries(self) -> Iterable[Entry]:
        """The entries that lead to this state from nothing, as few as possible."""
        ...


S = TypeVar("S", bound=State)


def encode(entry: Entry) -> bytes:
    """One line."""
    body = orjson.dumps(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(data: bytes) -> Iterator[tuple[Entry, int]]:
    """Entries from the beginning, each with the offset behind it, up to the first line that is not whole."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        line = data[start:end]
        body = line[9:]
        if line[:9] != b"%08x " % zlib.crc32(body):
            return
        yield orjson.loads(body), end + 1
        start = end + 1


class Journal(Generic[S]):
    """An open journal. ``state`` is always what the entries written so far say. One per file; not for several threads."""

    def __init__(self, path: Path, state: S, *, compact_at: int = COMPACT_AT, on_broken: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._on_broken = on_broken
        self.state = state
        self._compact_at = compact_at
        self._limit = compact_at
        self._file = -1
        self._size = 0
        self._allocated = 0
        self._written = 0
        """How many times something was written, and how many of them are on the disk."""
        self._durable = 0
        self._syncing: asyncio.Task[None] | None = None
        self._broken: OSError | None = None

    @classmethod
    def open(cls, path: Path, state: S, *, compact_at: int = COMPACT_AT, on_broken: Callable[[], None] = lambda: None) -> Self:
        """Read what is there, or begin. ``on_broken``: the disk failed, nothing can be promised any more. Raises ``OSError``."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = cls(path, state, compact_at=compact_at, on_broken=on_broken)
        journal._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        journal._load()
        return journal

    def _load(self) -> None:
        data = self.path.read_bytes()
        for entry, end in decode(data):
            self.state.apply(entry)
            self._size = end
        behind = data[self._size :].rstrip(b"\0")
        if behind:
            if b"\n" in behind[:-1]:  # more than a torn line: keep it for whoever wants to know why
                self.path.with_suffix(".damaged").write_bytes(behind)
                log.error("journal.damaged", path=str(self.path), offset=self._size, bytes=len(behind))
            os.ftruncate(self._file, self._size)
        self._allocated = max(os.fstat(self._file).st_size, self._size)
        os.fdatasync(self._file)

    @property
    def size(self) -> int:
        """Bytes of entries in the file."""
        return self._size

    def room(self) -> None:
        """Make sure that new work can be written down to its end. Raises ``RuntimeFault("node.disk-full")``, retryable."""
        if self._allocated - self._size >= CHUNK // 2:
            return
        try:
            self._allocate(CHUNK)
        except OSError as error:
            raise RuntimeFault("node.disk-full", f"no room for the journal: {error.strerror}", retryable=True) from error

    def _allocate(self, more: int) -> None:
        os.posix_fallocate(self._file, self._allocated, more)
        self._allocated += more

    def write(self, *entries: Entry) -> None:
        """Put entries behind the others and fold them; they survive the end of this process. Raises ``RuntimeFault``."""
        if self._broken is not None:
            raise RuntimeFault("node.journal-broken", f"{self.path}: {self._broken}", retryable=True)
        data = b"".join(map(encode, entries))
        try:
            if self._size + len(data) > self._allocated:
                self._allocate(max(CHUNK, len(data)))
            self._pwrite(data)
        except OSError as error:
            raise RuntimeFault("node.disk-full", f"{self.path}: {error.strerror}", retryable=True) from error
        for entry in entries:
            self.state.apply(entry)
        if self._size > self._limit:
            self.compact()

    def _pwrite(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._size + done)
        self._size += len(data)
        self._written += 1

    async def append(self, *entries: Entry) -> None:
        """``write`` and ``sync``."""
        self.write(*entries)
        await self.sync()

    async def sync(self) -> None:
        """Wait until everything written so far is on the disk. Raises ``RuntimeFault``."""
        wanted = self._written
        while self._durable < wanted:
            if self._broken is not None:
                raise RuntimeFault("node.journal-broken", f"{self.path}: {self._broken}", retryable=True)
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        """One ``fdatasync`` for all who wait. After a failed one nobody knows what is on the disk: nothing is accepted any more."""
        written, file = self._written, os.dup(self._file)
        try:
            await asyncio.to_thread(os.fdatasync, file)
            self._durable = max(self._durable, written)
        except OSError as error:
            self._break(error)
        finally:
            os.close(file)
            self._syncing = None

    def _break(self, error: OSError) -> None:
        self._broken = error
        log.critical("journal.broken", path=str(self.path), error=str(error))
        self._on_broken()

    def compact(self) -> None:
        """Rewrite the file as the shortest one with the same state: complete beside the old one, then in its place."""
        temporary = self.path.with_suffix(".new")
        data = b"".join(map(encode, self.state.entries()))
        try:
            file = _write_out(temporary, data, CHUNK)
            temporary.replace(self.path)
        except OSError as error:  # the long file is as good as the short one; try again when it has grown
            log.warning("journal.not-compacted", path=str(self.path), error=str(error))
            self._limit = self._size + self._compact_at
            return
        os.close(self._file)
        self._file, self._size, self._allocated = file, len(data), len(data) + CHUNK
        self._limit = max(self._compact_at, 4 * len(data))
        try:
            _sync_directory(self.path.parent)
            self._durable = self._written
        except OSError as error:
            self._break(error)

    def close(self) -> None:
        """Sync and close; a second time does nothing."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)
            os.close(self._file)
            self._file = -1


def _write_out(path: Path, data: bytes, spare: int) -> int:
    """A new file with ``data`` on the disk and ``spare`` bytes allocated behind it, open. Raises ``OSError``, leaving nothing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, len(data) + spare)
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], written)
        os.fdatasync(file)
    except BaseException:
        os.close(file)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return file


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
