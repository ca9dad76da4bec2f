"""nats-py's parser, with a short way for what nearly all of the traffic is: whole messages.

Its own way costs about as much as everything else that is done with a message: two regular expressions, a state machine, and copies of
copies (reference/jetstream-eventstore.md §3.7). What is no whole message - a line that is cut in two, pings, errors - is still left to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

import structlog
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

log = structlog.get_logger(__name__)

Take: TypeAlias = Callable[[bytes, bytes, bytes, bytes | None], None]
"""(subject, reply, data, headers) of a message as it came in; None when there are no headers. Must not wait."""
Process: TypeAlias = Callable[[int, bytes, bytes, bytes, Any], Awaitable[None]]

_END: Final = b"\r\n"


class _Line(NamedTuple):
    """The line before a message. ``header`` and ``size`` are bytes; the headers are part of the size."""

    subject: bytes
    sid: int
    reply: bytes
    header: int
    size: int


def hand_over(take: Take, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
    """Call ``take``; what it raises is logged, because the read loop would die of it."""
    try:
        take(subject, reply, data, headers)
    except Exception:
        log.exception("connection.message-failed", subject=repr(bytes(subject))[:200])


class MessageParser(Parser):
    """``direct``: who takes the messages of a subscription at once; all others go to ``process``, as with nats-py."""

    def __init__(self, client: Any, direct: dict[int, Take], process: Process) -> None:
        self._resets = 0
        super().__init__(client)
        self._direct = direct
        self._process = process

    def reset(self) -> None:
        """Begin anew, on another socket."""
        self._resets += 1
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        """What was read from the socket."""
        if self.state == AWAITING_CONTROL_LINE:
            resets = self._resets
            data = await self._whole(bytes(self.buf) + data if self.buf else data)
            if self._resets != resets:
                return  # what is left came on a socket that is gone
            self.buf.clear()
        if data or self.buf:
            await super().parse(data)

    async def _whole(self, data: bytes) -> bytes:
        """Hand out the whole messages that ``data`` begins with; the rest."""
        at, length = 0, len(data)
        while (end := data.find(_END, at)) > 0:
            line = _line(data[at:end])
            if line is None or (stop := end + 2 + line.size) + 2 > length:
                break
            begin = end + 2
            body = begin + line.header
            headers = data[begin:body] if line.header else None
            at = stop + 2
            take = self._direct.get(line.sid)
            if take is None:
                await self._process(line.sid, line.subject, line.reply, data[body:stop], headers)
            else:
                hand_over(take, line.subject, line.reply, data[body:stop], headers)
        return data[at:] if at else data


def _line(line: bytes) -> _Line | None:
    """``MSG subject sid [reply] size`` or ``HMSG subject sid [reply] header size``; None: something else, or not as it should be."""
    words = line.split()
    try:
        if words[0] == b"HMSG":
            _, subject, sid, *reply, header, size = words
            return _Line(subject, int(sid), reply[0] if reply else b"", int(header), int(size))
        if words[0] == b"MSG":
            _, subject, sid, *reply, size = words
            return _Line(subject, int(sid), reply[0] if reply else b"", 0, int(size))
    except (ValueError, IndexError):
        pass
    return None
