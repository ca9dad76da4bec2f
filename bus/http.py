"""The little of HTTP/1.1 (RFC 9110, RFC 9112) that our own ports need: GET and HEAD, one request per connection, everything bounded.

For what a process serves beside the bus: its metrics, and the bytes of artifacts. It listens on this machine only; whoever wants it reached
from elsewhere puts a proxy with TLS in front.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog

log = structlog.get_logger(__name__)

LOOPBACK: Final = "127.0.0.1"
ASKING_S: Final = 5.0
"""How long somebody may take to say what they want."""
STALLED_S: Final = 60.0
"""How long somebody may take nothing of the answer."""
LARGEST_HEAD: Final = 16 * 1024
MOST: Final = 16
"""Requests that are answered at one time; more are told to come back."""
SERVED: Final = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. ``path`` is without its query; ``headers`` have lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """``size`` bytes, which are ``body`` or come from ``parts``. HEAD gets the same without them."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    parts: AsyncIterator[bytes] | None = None
    size: int | None = None

    def head(self) -> bytes:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {value}" for name, value in self.headers.items())]
        if self.status is not HTTPStatus.NOT_MODIFIED:
            lines.append(f"Content-Length: {len(self.body) if self.size is None else self.size}")
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


Handler = Callable[[Asked], Awaitable[Answer]]


def plain(status: HTTPStatus, text: str, **headers: str) -> Answer:
    """A line for people."""
    return Answer(status, {"Content-Type": "text/plain; charset=utf-8", **headers}, f"{text}\n".encode())


@contextlib.asynccontextmanager
async def serving(handle: Handler, port: int) -> AsyncIterator[int]:
    """Answer requests while the block runs; the port, which is a free one for 0. Raises ``OSError`` when it is taken.

    What is still being sent at the end of the block is cut off; ``Content-Length`` tells the other side.
    """
    running: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_converse(reader, writer, handle, busy=len(running) >= MOST))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(connected, LOOPBACK, port, limit=LARGEST_HEAD)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler, *, busy: bool) -> None:
    """One request, one answer. A connection whose answer cannot be sent whole is cut off: ``Content-Length`` says so."""
    try:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            method, answer = await _heard(reader, handle, busy=busy)
            await _send(writer, answer, bare=method == "HEAD")
            writer.close()
            async with asyncio.timeout(STALLED_S):
                await writer.wait_closed()
    except Exception as error:  # noqa: BLE001 - of this request alone
        log.warning("http.failed", error=repr(error))
    finally:
        writer.transport.abort()


async def _heard(reader: asyncio.StreamReader, handle: Handler, *, busy: bool) -> tuple[str, Answer]:
    """The method, and what to say."""
    try:
        async with asyncio.timeout(ASKING_S):
            asked = parsed(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        return "", plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {LARGEST_HEAD} bytes of headers")
    if asked is None:
        return "", plain(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
    if busy:
        return asked.method, plain(HTTPStatus.SERVICE_UNAVAILABLE, "too many at one time", **{"Retry-After": "1"})
    if asked.method not in SERVED:
        return asked.method, plain(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD", Allow=", ".join(SERVED))
    return asked.method, await handle(asked)


def parsed(head: bytes) -> Asked | None:
    """The request of which this is the head; None when it is not one of HTTP/1."""
    first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    match first.split(" "):
        case [method, target, "HTTP/1.0" | "HTTP/1.1"] if method.isalpha() and target.startswith("/"):
            pairs = [line.partition(":") for line in rest]
            if any(not colon or not name or name != name.strip() for name, colon, _ in pairs):
                return None
            return Asked(method, target.partition("?")[0], {name.lower(): value.strip() for name, _, value in pairs})
    return None


async def _send(writer: asyncio.StreamWriter, answer: Answer, *, bare: bool) -> None:
    """Raises ``TimeoutError`` when the other side takes nothing for too long."""
    writer.write(answer.head() + (b"" if bare else answer.body))
    await _taken(writer)
    if answer.parts is not None and not bare:
        async for part in answer.parts:
            writer.write(part)
            await _taken(writer)


async def _taken(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(STALLED_S):
        await writer.drain()
