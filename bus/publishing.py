"""Publishing into a stream and waiting for its acknowledgement, by nats-py's public API; ``bus/fast.py`` does the same, faster.

Three things can happen to a message: it is stored (:class:`Ack`), the stream says no (:class:`RejectedError`), or nobody says anything
(:class:`UnansweredError`) and it may have been stored all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

DUPLICATE_IN_PROCESS: Final = 10158
"""Of replicated streams only: the same Msg-Id is being stored at this moment."""
ACK_S: Final = 2.0
"""How long one attempt waits. An fsynced append takes 0.2 ms, 256 of them at once 40 ms (reference/jetstream-eventstore.md §3.2)."""

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ack:
    """``seq`` is the position in the stream; of a batch, that of its last message. ``duplicate``: the Msg-Id was known, ``seq`` is old."""

    seq: int
    duplicate: bool = False
    count: int = 1


class RejectedError(Exception):
    """The stream refused; nothing was stored."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code

    @property
    def passing(self) -> bool:
        """Whether the same message may be accepted later: no leader, too much at once, no room, or just being stored."""
        return self.code in {408, 429} or self.code >= 500 or self.err_code == DUPLICATE_IN_PROCESS


class UnansweredError(Exception):
    """No acknowledgement. Whether the message was stored is unknown."""


class Message(NamedTuple):
    """What to publish."""

    subject: str
    data: bytes
    headers: Headers | None = None


class Publisher:
    """Publishes and waits for acknowledgements. Any number of publishes may be under way at once."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self._batches = 0
        self._batch_prefix = nc.new_inbox().rsplit(".", 1)[-1]

    async def start(self) -> Self:
        return self

    async def close(self) -> None:
        """Publishes under way end as unanswered."""

    async def ask(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Msg:
        """One request, one reply. Raises ``UnansweredError``."""
        try:
            return await self.nc.request(subject, data, headers=dict(headers) if headers else None, timeout=timeout)
        except nats.errors.MaxPayloadError:
            raise
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise UnansweredError(repr(error)) from error

    async def tell(self, subject: str, data: bytes, headers: Headers | None = None, reply: str = "") -> None:
        """Send, and wait for nothing. Raises ``UnansweredError`` when it cannot even be sent."""
        try:
            await self.nc.publish(subject, data, reply, headers=dict(headers) if headers else None)
        except nats.errors.MaxPayloadError:
            raise
        except (nats.errors.Error, OSError) as error:
            raise UnansweredError(repr(error)) from error

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Ack:
        """Store one message. Raises ``RejectedError``, ``UnansweredError``, ``nats.errors.MaxPayloadError``."""
        return parse_ack((await self.ask(subject, data, headers, timeout)).data)

    async def publish_batch(self, messages: Sequence[Message], timeout: float = ACK_S) -> Ack:
        """Store 1..1000 messages, all or none, at contiguous positions (ADR-50, reference §1.3). Raises as ``publish``."""
        self._batches += 1
        marks = {"Nats-Batch-Id": f"{self._batch_prefix}-{self._batches}"}
        *first, last = messages
        for number, message in enumerate(first, 1):
            await self.tell(message.subject, message.data, {**(message.headers or {}), **marks, "Nats-Batch-Sequence": str(number)})
        marks |= {"Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
        return await self.publish(last.subject, last.data, {**(last.headers or {}), **marks}, timeout)


def parse_ack(data: bytes) -> Ack:
    """The acknowledgement in a reply. Raises ``RejectedError``."""
    said = orjson.loads(data)
    error = said.get("error")
    if error is not None:
        raise RejectedError(error.get("code", 500), error.get("err_code", 0), error.get("description", "refused"))
    return Ack(said["seq"], said.get("duplicate", False), said.get("count", 1))
