"""Publishing with pipelined acknowledgements: they are handled inside nats-py's read loop, without a queue or a task for each.

Where that does not work with the nats-py that is installed, ``open_publisher`` falls back to the public API (bus/replies.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.connection import Connection
from bus.headers import parse_headers
from bus.replies import FLUSH_S, Headers, Replies, within
from bus.requests import ACK_S, Ack, ApiError, Message, Publisher, parse_ack

__all__ = ["Ack", "ApiError", "FastPublisher", "Message", "Publisher", "open_publisher", "publish_all"]


def open_publisher(nc: Client) -> Publisher:
    """A publisher on ``nc``: the fast one, if the connection has what it needs."""
    replies = nc.replies if isinstance(nc, Connection) else None
    return Publisher(nc) if replies is None else FastPublisher(nc, replies)


class FastPublisher(Publisher):
    """Takes acknowledgements without making messages of them."""

    def __init__(self, nc: Client, replies: Replies) -> None:
        super().__init__(nc)
        self._replies: Final = replies

    async def ask(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Msg:
        reply = await self._replies.exchange(subject, data, headers, timeout)
        return Msg(self.nc, "", "", reply.data, parse_headers(reply.headers) or None)

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Ack:
        return parse_ack((await self._replies.exchange(subject, data, headers, timeout)).data)

    async def tell(self, subject: str, data: bytes, headers: Headers | None = None, reply: str = "") -> None:
        flushed = self._replies.send(subject, reply.encode(), data, headers)
        if flushed is not None:
            await within(FLUSH_S, flushed)

    async def _tell_with_next(self, subject: str, data: bytes, headers: Headers) -> None:
        if self._replies.crowded:
            await self.tell(subject, data, headers)
        else:
            self._replies.prepare(subject, b"", data, headers)


async def publish_all(nc: Client, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish several, (subject, data), with one write. Raises as ``publish``, and ``UnansweredError``."""
    replies = nc.replies if isinstance(nc, Connection) else None
    *others, (last, its_data) = messages
    for subject, data in others:
        if replies is None or replies.crowded:
            await nc.publish(subject, data)
        else:
            replies.prepare(subject, b"", data, None)
    await nc.publish(last, its_data)
