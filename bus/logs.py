"""What sandboxes print: many small writes gathered into few messages, and read back from any moment on.

Output is worth less than the node that carries it: what the bus does not take in time is dropped, counted, and the gap is said in the log
itself. The stream is bounded by age, bytes and messages per sandbox (design.md §3).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus import direct, subjects
from bus.pull import NANO, Delivered, Pull
from bus.requests import ApiError, call

Stream = Literal["stdout", "stderr", "runtime"]

FLUSH_S: Final = 0.1
MESSAGE: Final = 32 * 1024
"""Bytes gathered into one message at most."""
BUFFER: Final = 8 * 1024 * 1024
"""Bytes kept at most, of all sandboxes of a writer together."""
UNSENT: Final = 16 * 1024 * 1024
"""While the connection has so much unsent, nothing is added to it."""
WINDOW: Final = 256
"""Messages a follower has at most before it has looked at them."""


class LogWriter:
    """Takes output without ever waiting, and publishes it in the background. One per agent, ``async with`` it."""

    def __init__(self, nc: Client, *, flush_s: float = FLUSH_S, buffer: int = BUFFER) -> None:
        self._nc = nc
        self._flush_s = flush_s
        self._most = buffer
        self._size = 0
        self._waiting: dict[str, bytearray] = {}
        self._dropped: dict[str, int] = {}
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are not handed to the connection yet."""
        return self._size

    def write(self, project: str, sandbox: str, stream: Stream, data: bytes) -> None:
        """Add output. What does not fit is dropped and counted."""
        subject = subjects.log(project, sandbox, stream)
        if self._size + len(data) > self._most:
            self._dropped[subject] = self._dropped.get(subject, 0) + len(data)
            return
        self._waiting.setdefault(subject, bytearray()).extend(data)
        self._size += len(data)
        if self._size > self._most // 2:
            self._full.set()

    async def flush(self) -> None:
        """Hand everything to the connection, as far as it takes it."""
        if not self._nc.is_connected and self._nc.pending_data_size > UNSENT:
            return
        while self._waiting:
            subject, data = next(iter(self._waiting.items()))
            part = _cut(data)
            self._size -= len(part)
            if not data:
                del self._waiting[subject]
            await self._publish(subject, part)
        dropped, self._dropped = self._dropped, {}
        for subject, count in dropped.items():
            sandbox, _, stream = subject.rpartition(".")
            await self._publish(f"{sandbox}.runtime", f"{count} bytes of {stream} lost\n".encode())

    async def _publish(self, subject: str, data: bytes) -> None:
        try:
            await self._nc.publish(subject, data)
        except NatsError:  # its buffer is full, or it is closed
            self._dropped[subject] = self._dropped.get(subject, 0) + len(data)

    async def _run(self) -> None:
        while True:
            self._full.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await self._full.wait()
            await self.flush()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="log writer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()


def _cut(data: bytearray) -> bytes:
    """Take a message's worth off the front: whole lines if there are any."""
    end = len(data)
    if end > MESSAGE:
        end = data.rfind(b"\n", 0, MESSAGE) + 1 or MESSAGE
    part = bytes(data[:end])
    del data[:end]
    return part


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Some output of one stream: usually whole lines. ``seq`` is where to go on after it."""

    seq: int
    time: datetime
    stream: str
    data: bytes


async def read(
    nc: Client, project: str, sandbox: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0
) -> AsyncIterator[LogChunk]:
    """What is stored now, oldest first. Raises ``Refused`` (``bus.unavailable``)."""
    subject, seq = _subject(project, sandbox, stream), after + 1
    while seq:
        got = await direct.batch(nc, subjects.LOGS, subject, seq, WINDOW)
        for message in got.messages:
            chunk = LogChunk(message.seq, _time(message.time), message.subject.rsplit(".", 1)[1], message.data)
            if since is None or chunk.time >= since:
                yield chunk
        seq = got.next_seq


async def follow(
    nc: Client, project: str, sandbox: str, *, stream: Stream | None = None, since: datetime | None = None, after: int = 0
) -> AsyncIterator[LogChunk]:
    """What is stored, and then what comes, until the caller stops. Survives restarts of the bus; nothing is said twice or left out.

    Close it (``contextlib.aclosing``) to end its consumer at once; an abandoned one ends by itself.
    """
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    name = "log-" + nc._nuid.next().decode()  # noqa: SLF001 - the client's own unique names
    subject, taken = _subject(project, sandbox, stream), after

    async def attach(_: bool) -> str:
        with contextlib.suppress(ApiError):
            await call(nc, f"CONSUMER.DELETE.{subjects.LOGS}.{name}")
        config = {
            "name": name,
            "filter_subject": subject,
            "ack_policy": "explicit",
            "ack_wait": 3600 * NANO,
            "max_ack_pending": WINDOW,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 60 * NANO,
            **_beginning(taken, since),
        }
        await call(nc, f"CONSUMER.CREATE.{subjects.LOGS}.{name}.{subject}", {"stream_name": subjects.LOGS, "config": config})
        return name

    def take(message: Delivered, seq: int, _: int) -> int:
        nonlocal taken
        if seq > taken:
            taken = seq
            arrived.put_nowait(message.message(nc))
        return 0  # the consumer's ack window bounds what has arrived

    pulling = asyncio.create_task(Pull(nc, subjects.LOGS, attach, take, window=WINDOW).run())
    try:
        while True:
            message = await arrived.get()
            meta = message.metadata
            await message.ack()
            yield LogChunk(meta.sequence.stream, meta.timestamp, message.subject.rsplit(".", 1)[1], message.data)
    finally:
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        if nc.is_connected:
            await nc.publish(f"$JS.API.CONSUMER.DELETE.{subjects.LOGS}.{name}")


def _beginning(after: int, since: datetime | None) -> dict[str, object]:
    if after:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
    if since is not None:
        return {"deliver_policy": "by_start_time", "opt_start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    return {"deliver_policy": "all"}


def _subject(project: str, sandbox: str, stream: Stream | None) -> str:
    return subjects.log(project, sandbox, stream) if stream else subjects.log(project, sandbox, "stdout").removesuffix("stdout") + "*"


def _time(said: str) -> datetime:
    """A server's timestamp, which has nanoseconds, as far as Python keeps it."""
    whole, _, fraction = said.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")
