"""Asking the bus: one request, stored publishes and batches with their acknowledgements, calls of JetStream's API, and their repetition.

Three things can happen to a message for a stream: it is stored (:class:`Ack`), the stream says no (:class:`ApiError`), or nobody says
anything (:class:`UnansweredError`) and it may have been stored all the same. ``bus/fast.py`` publishes in the same way, faster.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubjectError, MaxPayloadError
from nats.errors import Error as NatsError

from bus.replies import Headers, UnansweredError
from domain.kernel.errors import Refused

T = TypeVar("T")

ACK_S: Final = 2.0
"""How long one publish waits. An fsynced append takes 0.2 ms, 256 of them at once 40 ms (reference/jetstream-eventstore.md §3.2)."""
PATIENCE_S: Final = 2.0
"""How long one sending to JetStream waits for its answer before it is repeated: a killed server takes requests with it."""
WITHIN_S: Final = 30.0
"""How long sendings are repeated; a raft election takes about 4 s (reference/jetstream-eventstore.md §1.2)."""
DUPLICATE_IN_PROCESS: Final = 10158
"""Of replicated streams only: the same Msg-Id is being stored at this moment."""

ABSENT: Final = frozenset({10043, 10057})
"""``sequence not found``, ``no message found``: said with code 500, and for good."""


class ApiError(Exception):
    """JetStream said no; nothing is stored. ``code`` is HTTP-like, ``err_code`` its own error number."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error.get('description')} ({error.get('err_code')})")
        self.code = int(error.get("code", 500))
        self.err_code = int(error.get("err_code", 0))

    @property
    def passing(self) -> bool:
        """Whether the same message may be accepted later: no leader, too much at once, no room, or just being stored."""
        if self.err_code in ABSENT:
            return False
        return self.code in {408, 429} or self.code >= 500 or self.err_code == DUPLICATE_IN_PROCESS


class Ack(NamedTuple):
    """``seq`` is the position in the stream; of a batch, that of its last message. ``duplicate``: the Msg-Id was known, ``seq`` is old."""

    seq: int
    duplicate: bool = False
    messages: int = 1


class Message(NamedTuple):
    """What to publish."""

    subject: str
    data: bytes
    headers: Headers | None = None


async def exchange(nc: Client, subject: str, data: bytes, headers: Headers | None, timeout: float) -> Msg:
    """One request, one reply. Raises ``UnansweredError``, and nats-py's ``MaxPayloadError`` and ``BadSubjectError``."""
    try:
        return await nc.request(subject, data, timeout=timeout, headers=dict(headers) if headers else None)
    except (MaxPayloadError, BadSubjectError):
        raise
    except (NatsError, OSError, TimeoutError) as error:
        raise UnansweredError(f"no answer on {subject}: {error}") from error


async def request(nc: Client, subject: str, data: bytes, headers: Headers, timeout: float) -> bytes:
    """The answer to one request. Raises ``Refused``: ``bus.unavailable``, which passes, or another code, which does not."""
    try:
        return (await exchange(nc, subject, data, headers, timeout)).data
    except MaxPayloadError:
        raise Refused("bus.too-large", f"{len(data)} bytes are more than the server takes") from None
    except BadSubjectError:
        raise Refused("bus.bad-subject", f"not a subject: {subject[:128]!r}") from None
    except UnansweredError:
        if nc.is_closed or nc.is_draining:
            raise Refused("bus.closed", "this connection is closed") from None
        raise


async def patiently(
    once: Callable[[float], Awaitable[T]],
    within: float,
    again: frozenset[str] = frozenset({"bus.unavailable"}),
    *,
    pause: float = 0.05,
    longest_pause: float = 1.0,
) -> T:
    """Call ``once(seconds left)`` until it succeeds, refuses for another reason than those in ``again``, or the time is over.

    What JetStream refuses for now only is asked again too, and is ``UnansweredError`` in the end.
    """
    deadline = time.monotonic() + within
    while True:
        left = deadline - time.monotonic()
        spread = pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads callers, guards nothing
        try:
            return await once(max(left, 0.001))
        except Refused as refused:
            if refused.code not in again or time.monotonic() + spread >= deadline:
                raise
        except ApiError as error:
            if not error.passing:
                raise
            if time.monotonic() + spread >= deadline:
                raise UnansweredError(f"JetStream does not take it: {error}") from error
        pause = min(pause * 2, longest_pause)
        await asyncio.sleep(spread)


async def store(
    nc: Client, subject: str, data: bytes, *, msg_id: str | None = None, headers: Headers | None = None, within: float = WITHIN_S
) -> Ack:
    """Publish into a stream and wait until it is stored.

    Without ``msg_id`` or an expectation in ``headers`` a repetition may store the message twice. Raises ``ApiError`` when the stream does
    not take it, and ``Refused`` (``bus.unavailable``, retryable) when nobody said within ``within`` seconds whether it is stored.
    """
    extra = dict(headers or {})
    if msg_id is not None:
        extra["Nats-Msg-Id"] = msg_id
    return _ack(await _ask(nc, subject, data, extra, within))


async def call(nc: Client, verb: str, body: Mapping[str, Any] | None = None, *, within: float = WITHIN_S) -> dict[str, Any]:
    """A call of ``$JS.API.<verb>``. Raises as :func:`store`. Only for calls that may be made twice."""
    return await _ask(nc, f"$JS.API.{verb}", orjson.dumps(body) if body else b"", {}, within)


async def _ask(nc: Client, subject: str, data: bytes, headers: Headers, within: float) -> dict[str, Any]:
    async def once(left: float) -> dict[str, Any]:
        try:
            return accepted(await request(nc, subject, data, headers, min(left, PATIENCE_S)))
        except orjson.JSONDecodeError:
            raise Refused("bus.unintelligible", f"{subject} is not answered by JetStream") from None

    return await patiently(once, within)


def accepted(reply: bytes) -> dict[str, Any]:
    """What JetStream says. Raises ``ApiError`` when that is no."""
    said: dict[str, Any] = orjson.loads(reply)
    error = said.get("error")
    if error is not None:
        raise ApiError(error)
    return said


def parse_ack(data: bytes) -> Ack:
    """The acknowledgement in a reply. Raises ``ApiError``."""
    plain = _PLAIN_ACK(data)
    return Ack(int(plain[1])) if plain else _ack(accepted(data))


_PLAIN_ACK: Final = re.compile(rb'\{"stream":\s?"[A-Za-z0-9_-]+",\s?"seq":\s?(\d+)\}').fullmatch
"""What nearly all acknowledgements look like: found in a third of the time that parsing takes."""


def _ack(said: Mapping[str, Any]) -> Ack:
    return Ack(int(said["seq"]), said.get("duplicate") is True, said.get("count", 1))


class Publisher:
    """Publishes and waits for acknowledgements, once. Any number of publishes may be under way at the same time."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self._batches = 0
        self._batch_prefix = nc.new_inbox().rsplit(".", 1)[-1]

    async def close(self) -> None:
        """Nothing here: publishes that are under way end with the connection."""

    async def ask(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Msg:
        """One request, one reply. Raises ``UnansweredError``."""
        return await exchange(self.nc, subject, data, headers, timeout)

    async def tell(self, subject: str, data: bytes, headers: Headers | None = None, reply: str = "") -> None:
        """Send, and wait for nothing. Raises ``UnansweredError`` when it cannot even be sent."""
        try:
            await self.nc.publish(subject, data, reply, headers=dict(headers) if headers else None)
        except MaxPayloadError:
            raise
        except (NatsError, OSError) as error:
            raise UnansweredError(repr(error)) from error

    async def publish(self, subject: str, data: bytes, headers: Headers | None = None, timeout: float = ACK_S) -> Ack:
        """Store one message. Raises ``ApiError``, ``UnansweredError``, ``nats.errors.MaxPayloadError``."""
        return parse_ack((await self.ask(subject, data, headers, timeout)).data)

    async def publish_batch(self, messages: Sequence[Message], timeout: float = ACK_S) -> Ack:
        """Store 1..1000 messages, all or none, at contiguous positions (ADR-50, reference §1.3). Raises as ``publish``."""
        self._batches += 1
        marks = {"Nats-Batch-Id": f"{self._batch_prefix}-{self._batches}"}
        *first, last = messages
        for number, message in enumerate(first, 1):
            headers = {**(message.headers or {}), **marks, "Nats-Batch-Sequence": str(number)}
            await self._tell_with_next(message.subject, message.data, headers)
        marks |= {"Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
        return await self.publish(last.subject, last.data, {**(last.headers or {}), **marks}, timeout)

    async def _tell_with_next(self, subject: str, data: bytes, headers: Headers) -> None:
        """``tell``, or whatever is cheaper for what is followed by another at once."""
        await self.tell(subject, data, headers)
