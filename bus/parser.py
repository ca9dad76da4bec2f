"""nats-py's parser, with a short way for what nearly all of the traffic is: whole messages.

Its own way costs about as much as everything else that is done with a message: two regular expressions, a state machine, and copies of
copies (reference/jetstream-eventstore.md §3.7). What is no whole message - a line that is cut in two, pings, errors - is still left to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import structlog
from nats.protocol.parser import AWAITING_CONTROL_LINE, MAX_CONTROL_LINE_SIZE, Parser

log = structlog.get_logger(__name__)

Take: TypeAlias = Callable[[bytes, bytes, bytes, bytes | None], None]
"""(subject, reply, data, headers) of a message as it came in; None when there are no headers. Must not wait."""
Process: TypeAlias = Callable[[int, bytes, bytes, bytes, Any], Awaitable[None]]

_END: Final = b"\r\n"
_BEGINS: Final = (b"MSG ", b"HMSG ")


_Line: TypeAlias = tuple[bytes, int, bytes, int, int]
"""(subject, sid, reply, size of the headers, size of headers and data) of the line before a message."""


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
        self._begun = bytearray()
        self._wanted = 0
        super().__init__(client)
        self._direct = direct
        self._process = process

    def reset(self) -> None:
        """Begin anew, on another socket."""
        self._resets += 1
        self._begun.clear()
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        """What was read from the socket."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return
            data = bytes(self._begun)
            self._begun.clear()
        if self.state == AWAITING_CONTROL_LINE:
            resets = self._resets
            data = await self._whole(bytes(self.buf) + data if self.buf else data)
            if self._resets != resets:
                return  # what is left came on a socket that is gone
            self.buf.clear()
        if data and not self._is_begun(data):
            await super().parse(data)

    async def _whole(self, data: bytes) -> bytes:
        """Hand out the whole messages that ``data`` begins with; the rest."""
        at, length = 0, len(data)
        while (end := data.find(_END, at)) > 0:
            line = _line(data[at:end])
            if line is None:
                break
            subject, sid, reply, header, size = line
            begin = end + 2
            body, stop = begin + header, begin + size
            if stop + 2 > length:
                break
            headers = data[begin:body] if header else None
            at = stop + 2
            take = self._direct.get(sid)
            if take is None:
                await self._process(sid, subject, reply, data[body:stop], headers)
            else:
                hand_over(take, subject, reply, data[body:stop], headers)
        return data[at:] if at else data

    def _is_begun(self, rest: bytes) -> bool:
        """Keep the beginning of a message until the rest of it is there."""
        if not rest.startswith(_BEGINS):
            return False
        end = rest.find(_END)
        line = _line(rest[:end]) if end > 0 else None
        if (end > 0 and line is None) or (end < 0 and len(rest) > MAX_CONTROL_LINE_SIZE):
            return False  # nats-py's own way says what is wrong with it
        self._wanted = 0 if line is None else end + 2 + line[4] + 2
        self._begun += rest
        return True


def _line(line: bytes) -> _Line | None:
    """``MSG subject sid [reply] size`` or ``HMSG subject sid [reply] header size``; None: something else, or not as it should be."""
    words = line.split()
    try:
        kind, count = words[0], len(words)
        if kind == b"MSG":  # what nearly all lines are
            if count == 5:
                return words[1], int(words[2]), words[3], 0, int(words[4])
            if count == 4:
                return words[1], int(words[2]), b"", 0, int(words[3])
        elif kind == b"HMSG":
            if count == 6:
                return words[1], int(words[2]), words[3], int(words[4]), int(words[5])
            if count == 5:
                return words[1], int(words[2]), b"", int(words[3]), int(words[4])
    except (ValueError, IndexError):
        pass
    return None
