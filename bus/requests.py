"""Asking JetStream: stored publishes that are repeated until they are acknowledged, and calls of its API."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from nats.aio.client import Client
from nats.errors import BadSubjectError, ConnectionClosedError, ConnectionDrainingError, MaxPayloadError
from nats.errors import Error as NatsError

from bus.connection import Connection
from domain.kernel.errors import Refused

T = TypeVar("T")

PATIENCE_S: Final = 2.0
"""How long one sending to JetStream waits for its answer before it is repeated: a killed server takes requests with it."""
WITHIN_S: Final = 30.0
"""How long sendings are repeated; a raft election takes about 4 s (reference/jetstream-eventstore.md §1.2)."""
_PASSING: Final = frozenset({408, 429, 503})
"""Status codes of JetStream that say nothing is stored, and that asking again can help."""


class ApiError(Exception):
    """JetStream said no. ``code`` is HTTP-like, ``number`` its own error number (``err_code``)."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error.get('description')} ({error.get('err_code')})")
        self.code = int(error.get("code", 0))
        self.number = int(error.get("err_code", 0))


class Stored(NamedTuple):
    """A message's place in its stream. ``duplicate``: it was there already, put by an earlier sending with the same id."""

    seq: int
    duplicate: bool = False


async def store(
    nc: Client, subject: str, data: bytes, *, msg_id: str | None = None, headers: Mapping[str, str] | None = None, within: float = WITHIN_S
) -> Stored:
    """Publish into a stream and wait until it is stored.

    Without ``msg_id`` or an expectation in ``headers`` a repetition may store the message twice. Raises ``ApiError`` when the stream does
    not take it, and ``Refused`` (``bus.unavailable``, retryable) when nobody said within ``within`` seconds whether it is stored.
    """
    extra = dict(headers or {})
    if msg_id is not None:
        extra["Nats-Msg-Id"] = msg_id
    reply = await _ask(nc, subject, data, extra, within)
    return Stored(int(reply["seq"]), reply.get("duplicate") is True)


async def call(nc: Client, verb: str, body: Mapping[str, Any] | None = None, *, within: float = WITHIN_S) -> dict[str, Any]:
    """A call of ``$JS.API.<verb>``. Raises as :func:`store`. Only for calls that may be made twice."""
    return await _ask(nc, f"$JS.API.{verb}", orjson.dumps(body) if body else b"", {}, within)


async def _ask(nc: Client, subject: str, data: bytes, headers: dict[str, str], within: float) -> dict[str, Any]:
    async def once(left: float) -> dict[str, Any]:
        message = await request(nc, subject, data, headers, min(left, PATIENCE_S))
        try:
            reply: dict[str, Any] = orjson.loads(message)
        except orjson.JSONDecodeError:
            raise Refused("bus.unintelligible", f"{subject} is not answered by JetStream") from None
        error = reply.get("error")
        if error is None:
            return reply
        fault = ApiError(error)
        if fault.code in _PASSING:
            raise unavailable(subject, fault) from fault
        raise fault

    return await patiently(once, within)


async def request(nc: Client, subject: str, data: bytes, headers: dict[str, str], timeout: float) -> bytes:
    """One request, with nats-py's failures told apart: those that pass (``bus.unavailable``) and those that do not."""
    try:
        async with asyncio.timeout(timeout) as limit, _until_reconnect(nc, limit):
            return (await nc.request(subject, data, timeout=timeout + 1, headers=headers or None)).data
    except MaxPayloadError:
        raise Refused("bus.too-large", f"{len(data)} bytes are more than the server takes") from None
    except BadSubjectError:
        raise Refused("bus.bad-subject", f"not a subject: {subject[:128]!r}") from None
    except (ConnectionClosedError, ConnectionDrainingError):
        raise Refused("bus.closed", "this connection is closed") from None
    except (NatsError, OSError, TimeoutError) as error:
        raise unavailable(subject, error) from error


@asynccontextmanager
async def _until_reconnect(nc: Client, limit: asyncio.Timeout) -> AsyncIterator[None]:
    """End the waiting when the socket that the request went out on is gone: nobody will answer it any more."""

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # over already
            limit.reschedule(0)

    stop = nc.on_reconnect(end) if isinstance(nc, Connection) else None
    try:
        yield
    finally:
        if stop is not None:
            stop()


def unavailable(subject: str, why: Exception) -> Refused:
    """What a caller is told while the bus, or whoever should answer, is not there."""
    return Refused("bus.unavailable", f"no answer on {subject} ({type(why).__name__})", retryable=True)


async def patiently(once: Callable[[float], Awaitable[T]], within: float, again: frozenset[str] = frozenset({"bus.unavailable"})) -> T:
    """Call ``once(seconds left)`` until it succeeds, refuses for another reason than those in ``again``, or the time is over."""
    deadline, tries = time.monotonic() + within, 0
    while True:
        left = deadline - time.monotonic()
        try:
            return await once(max(left, 0.001))
        except Refused as refused:
            pause = min(0.05 * 2**tries, 1.0) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads callers, guards nothing
            if refused.code not in again or time.monotonic() + pause >= deadline:
                raise
        tries += 1
        await asyncio.sleep(pause)
