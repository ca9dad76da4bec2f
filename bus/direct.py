"""Reading stored messages without a consumer: direct get, single and in batches (reference/jetstream-eventstore.md §1.4).

Any replica answers, so a message stored a millisecond ago may be missing; whoever needs the last word asks the leader (``leader=True``).
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus.requests import PATIENCE_S, WITHIN_S, ApiError, call, patiently, unavailable
from domain.kernel.errors import Refused

_NOT_FOUND: Final = 404
_LOOK_S: Final = 0.25
SILENCE_S: Final = 5.0
"""How long a batch may go without a message before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Found:
    """A stored message."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    time: str = ""
    """RFC 3339, with nanoseconds, as the server says it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive messages of one filter. ``pending``: how many more there are behind ``last``."""

    messages: list[Found]
    last: int
    pending: int


async def get(nc: Client, stream: str, *, leader: bool = False, within: float = WITHIN_S, **which: Any) -> Found | None:
    """The message that ``seq=…`` or ``last_by_subj=…`` names, or None. Raises ``Refused`` (``bus.unavailable``)."""
    return await (_from_leader if leader else _from_anyone)(nc, stream, which, within)


async def _from_leader(nc: Client, stream: str, which: Mapping[str, Any], within: float) -> Found | None:
    try:
        message = (await call(nc, f"STREAM.MSG.GET.{stream}", which, within=within))["message"]
    except ApiError as error:
        if error.code == _NOT_FOUND:
            return None
        raise
    return Found(
        subject=message["subject"],
        seq=message["seq"],
        data=base64.b64decode(message.get("data", "")),
        headers=_headers(base64.b64decode(message.get("hdrs", ""))),
        time=message["time"],
    )


def _headers(raw: bytes) -> dict[str, str]:
    lines = (line.partition(b":") for line in raw.split(b"\r\n")[1:] if line)
    return {name.decode("ascii", "replace").strip(): value.decode("utf-8", "replace").strip() for name, _, value in lines}


async def _from_anyone(nc: Client, stream: str, which: Mapping[str, Any], within: float) -> Found | None:
    subject, body = f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(which)

    async def once(left: float) -> Found | None:
        try:
            message = await nc.request(subject, body, timeout=min(left, PATIENCE_S))
        except (NatsError, OSError) as error:
            raise unavailable(subject, error) from error
        status = (message.headers or {}).get("Status")
        if status is None:
            return _found(message)
        if status == str(_NOT_FOUND):
            return None
        raise ApiError({"code": int(status), "description": (message.headers or {}).get("Description")})

    return await patiently(once, within)


def _found(message: Msg) -> Found:
    headers = dict(message.headers or {})
    return Found(
        subject=headers.pop("Nats-Subject"),
        seq=int(headers.pop("Nats-Sequence")),
        data=message.data,
        headers=headers,
        time=headers.pop("Nats-Time-Stamp", ""),
    )


async def batch(
    nc: Client, stream: str, subject: str, seq: int = 1, count: int = 1000, max_bytes: int = 0, within: float = WITHIN_S
) -> Batch:
    """Up to ``count`` messages on ``subject`` from sequence ``seq`` on. An answer that was cut off is asked for again.

    Raises ``Refused`` (``bus.unavailable``, retryable).
    """
    asked: dict[str, Any] = {"batch": count, "seq": seq, "next_by_subj": subject}
    if max_bytes:
        asked["max_bytes"] = max_bytes
    api, body = f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(asked)

    async def once(_: float) -> Batch:
        try:
            messages, end = await _gather(nc, api, body)
        except (NatsError, OSError, TimeoutError) as error:
            raise unavailable(api, error) from error
        return _ended(end, messages, seq)

    return await patiently(once, within)


async def _gather(nc: Client, api: str, body: bytes) -> tuple[list[Found], Msg]:
    """All messages of one answer and the one that ends it. Raises ``TimeoutError`` when it stops before its end."""
    messages: list[Found] = []
    arrived = asyncio.Event()
    end: list[Msg] = []

    async def collect(message: Msg) -> None:
        if (message.headers or {}).get("Status") is None:
            messages.append(_found(message))
        else:
            end.append(message)
        arrived.set()

    inbox, connections = nc.new_inbox(), nc.stats["reconnects"]
    subscription = await nc.subscribe(inbox, cb=collect, pending_bytes_limit=0)
    try:
        await nc.publish(api, body, reply=inbox)
        heard = time.monotonic()
        while not end:
            arrived.clear()
            try:
                await asyncio.wait_for(arrived.wait(), _LOOK_S)
                heard = time.monotonic()
            except TimeoutError:
                if time.monotonic() - heard > SILENCE_S or nc.stats["reconnects"] != connections:
                    raise
    finally:
        if not nc.is_closed:
            await subscription.unsubscribe()
    return messages, end[0]


def _ended(message: Msg, messages: list[Found], seq: int) -> Batch:
    headers = message.headers or {}
    match headers["Status"]:
        case "204":
            return Batch(messages, int(headers.get("Nats-Last-Sequence", seq)), int(headers.get("Nats-Num-Pending", 0)))
        case "404":
            return Batch([], seq - 1, 0)
        case "503":
            raise Refused("bus.unavailable", "nobody has that stream now", retryable=True)
        case status:
            raise ApiError({"code": int(status), "description": headers.get("Description")})
