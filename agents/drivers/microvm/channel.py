"""The host's end of the guest agent's port: frames as ``agents/guest/agent/agent.h`` says, requests by number, execs with their streams."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agents.drivers.driver import ExecRequest, ExecResult, RuntimeFault
from agents.drivers.microvm import sockets

PING, START, EXEC, INPUT, KILL, SIGNAL, LIMITS, FREEZE, THAW = b"P", b"M", b"X", b"I", b"K", b"G", b"L", b"Z", b"z"
RESTORED, PREPARE, PORTS, USAGE, PUT, GET, HALT, SETTLE = b"C", b"B", b"T", b"U", b"W", b"R", b"H", b"S"
_OK, _OUT, _ERR, _WINDOW, _ENDED, _FAILED = b"k", b"o", b"e", b"w", b"E", b"F"

_END, _ESC = b"\xc0", b"\xdb"
_HEAD: Final = struct.Struct("<IIc")
_PIECE: Final = 32768
_LAST_WORDS_S: Final = 5.0
_SHELL: Final = {"sandbox.no-such-program": 127, "sandbox.not-executable": 126, "sandbox.start-failed": 126}
"""What a shell would exit with when a program cannot be executed."""


def fields(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A body of tagged texts. Raises ``sandbox.invalid-text`` for one that cannot be said."""
    body = b""
    for tag, text in pairs:
        if "\0" in text:
            raise RuntimeFault("sandbox.invalid-text", "a text for the guest has a NUL in it")
        body += tag.encode() + text.encode(errors="surrogateescape") + b"\0"
    return body


@dataclass(slots=True)
class _Request:
    """One number. What arrives for it waits in ``arrived``; ``done`` is set with each arrival."""

    arrived: list[tuple[bytes, bytes]] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> tuple[bytes, bytes]:
        while not self.arrived:
            self.more.clear()
            await self.more.wait()
        return self.arrived.pop(0)


class Guest:
    """One connection. QEMU takes one at a time; numbers begin anywhere, so that answers to an earlier agent are nobody's.

    What is said before the machine runs waits for it (reference/runtimes.md §5).
    """

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``."""
        self._number = secrets.randbits(31)
        self._requests: dict[int, _Request] = {}
        self._rest = b""
        self._connection = sockets.Connection(path, self._received, self._lost)

    @property
    def usable(self) -> bool:
        return self._connection.usable

    async def ask(self, kind: bytes, body: bytes = b"", timeout_s: float = 30.0) -> bytes:
        """Raises ``RuntimeFault`` with the guest's own code, or ``guest.silent``, ``guest.gone``."""
        with self._request() as (number, request):
            self._send(number, kind, body)
            try:
                async with asyncio.timeout(timeout_s):
                    answer, said = await request.next()
            except TimeoutError as error:
                raise RuntimeFault("guest.silent", f"the guest did not answer within {timeout_s:g} s", retryable=True) from error
        if answer == _FAILED:
            raise _refusal(said)
        return said

    async def put(self, path: str, data: bytes, mode: int) -> None:
        """Write a file of the sandbox's, in pieces. Raises ``file.not-written``."""
        for at in range(0, max(1, len(data)), _PIECE):
            head = f"{path}\0{mode:o}\0{at}\0".encode(errors="surrogateescape")
            await self.ask(PUT, head + data[at : at + _PIECE])

    async def get(self, path: str, most: int) -> bytes:
        """At most so many bytes of a file of the sandbox's. Raises ``file.not-read``."""
        data = b""
        while len(data) < most and (piece := await self.ask(GET, f"{path}\0{len(data)}\0".encode(errors="surrogateescape"))):
            data += piece
        return data[:most]

    async def run(self, body: bytes, request: ExecRequest) -> ExecResult:
        """Run a process to its end. When time is up, or the caller is cancelled, it is killed with everything that it has started."""
        with self._request() as (number, exchange):
            work = _Exec(self, number, exchange, request.stdin)
            self._send(number, EXEC, body)
            try:
                async with asyncio.timeout(request.timeout_s):
                    await work.follow()
            except TimeoutError:
                await self._kill(work)
                work.timed_out = True
            except asyncio.CancelledError:
                await asyncio.shield(self._kill(work))
                raise
            return work.result()

    async def _kill(self, work: _Exec) -> None:
        self._send(work.number, KILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await work.follow()

    @contextlib.contextmanager
    def _request(self) -> Iterator[tuple[int, _Request]]:
        self._number = (self._number + 1) & 0xFFFFFFFF
        number, request = self._number, _Request()
        self._requests[number] = request
        if not self._connection.usable:
            request.arrived.append((_FAILED, b"guest.gone\0the machine is gone"))
        try:
            yield number, request
        finally:
            self._requests.pop(number, None)

    def _send(self, number: int, kind: bytes, body: bytes = b"") -> None:
        frame = _HEAD.pack(_HEAD.size + len(body), number, kind) + body
        self._connection.write(_END + frame.replace(_ESC, b"\xdb\xdd").replace(_END, b"\xdb\xdc") + _END)

    def _received(self, data: bytes) -> None:
        *frames, self._rest = (self._rest + data).split(_END)
        for escaped in frames:
            frame = escaped.replace(b"\xdb\xdc", _END).replace(b"\xdb\xdd", _ESC)
            if len(frame) >= _HEAD.size:
                length, number, kind = _HEAD.unpack_from(frame)
                if length == len(frame) and (request := self._requests.get(number)) is not None:
                    request.arrived.append((kind, frame[_HEAD.size :]))
                    request.more.set()

    def _lost(self) -> None:
        for request in self._requests.values():
            request.arrived.append((_FAILED, b"guest.gone\0the machine is gone"))
            request.more.set()

    def close(self) -> None:
        self._connection.close()


class _Exec:
    """One process: its input in pieces as the guest asks for them, its output as it comes."""

    def __init__(self, guest: Guest, number: int, exchange: _Request, stdin: bytes) -> None:
        self.number = number
        self.timed_out = False
        self._guest = guest
        self._exchange = exchange
        self._stdin = memoryview(stdin)
        self._fed = False
        self._out, self._err = bytearray(), bytearray()
        self._code: int | None = None
        self._truncated = False

    async def follow(self) -> None:
        while self._code is None:
            kind, body = await self._exchange.next()
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"o":
                self._out += body
            case b"e":
                self._err += body
            case b"w":
                self._feed()
            case b"E":
                code, self._truncated = struct.unpack("<I?", body)
                self._code = code
            case _:
                self._refused(_refusal(body))

    def _feed(self) -> None:
        if not self._fed:
            piece, self._stdin = self._stdin[:_PIECE], self._stdin[_PIECE:]
            self._fed = not piece
            self._guest._send(self.number, INPUT, bytes(piece))  # noqa: SLF001 - a part of it

    def _refused(self, fault: RuntimeFault) -> None:
        if fault.code == "guest.gone":
            raise RuntimeFault("sandbox.not-running", "the machine ended while the process ran")
        if fault.code not in _SHELL:
            raise fault
        self._code = _SHELL[fault.code]
        self._err += f"{fault}\n".encode()

    def result(self) -> ExecResult:
        code = 137 if self._code is None else self._code
        return ExecResult(code, bytes(self._out), bytes(self._err), self._truncated, self.timed_out)


def _refusal(said: bytes) -> RuntimeFault:
    code, _, text = said.partition(b"\0")
    return RuntimeFault(code.decode(errors="replace"), text.decode(errors="replace"))
