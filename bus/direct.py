"""Reading stored messages without a consumer: direct gets, fast but perhaps a moment behind, and gets from the leader, which are not.

On a replicated stream a direct get may be answered by a follower: 1 to 7 % are stale right after one's own write
(reference/jetstream-eventstore.md §1.4). Decisions survive that by their optimistic lock; whoever needs the last word asks the leader.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NamedTuple

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.connection import Connection
from bus.replies import UnansweredError
from bus.requests import WITHIN_S, ApiError, Publisher, accepted, patiently

PAGE: Final = 1000
"""Messages per direct-get batch; larger batches are no faster (reference §3.3)."""
PAGE_BYTES: Final = 16 << 20
SILENCE_S: Final = 5.0
"""How long a page may go without a message before it counts as lost."""
_NOT_FOUND: Final = 404
_ABOUT: Final = frozenset({"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"})


class Stored(NamedTuple):
    """A message in a stream. ``time`` is RFC 3339, with nanoseconds, as the server says it."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    time: str = ""


class Page(NamedTuple):
    """Some messages in order, and where the next page begins; 0 when this was the last."""

    messages: list[Stored]
    next_seq: int


class Reader:
    """Reads one stream, asking once. Raises ``UnansweredError`` when the bus does not answer, ``ApiError`` when it refuses."""

    def __init__(self, publisher: Publisher, stream: str) -> None:
        self._publisher = publisher
        self._stream = stream
        self._subscription: Subscription | None = None
        self._opening = asyncio.Lock()
        self._prefix = ""
        self._count = 0
        self._pages: dict[str, _Gathering] = {}

    async def last(self, subject: str) -> Stored | None:
        """The last message on ``subject`` (wildcards work), perhaps a moment old."""
        return await self.from_anyone({"last_by_subj": subject})

    async def leader_last(self, subject: str) -> Stored | None:
        """The last message on ``subject`` as the stream's leader has it."""
        return await self.from_leader({"last_by_subj": subject})

    async def leader_at(self, seq: int) -> Stored | None:
        """The message at ``seq`` as the stream's leader has it."""
        return await self.from_leader({"seq": seq})

    async def position(self) -> int:
        """The stream's last sequence, from its leader."""
        said = accepted((await self._publisher.ask(f"$JS.API.STREAM.INFO.{self._stream}", b"")).data)
        return int(said["state"]["last_seq"])

    async def from_anyone(self, which: Mapping[str, Any]) -> Stored | None:
        """The message that ``which`` names, from any replica."""
        message = await self._publisher.ask(f"$JS.API.DIRECT.GET.{self._stream}", orjson.dumps(which))
        if "Status" not in (message.headers or {}):
            return _stored(message)
        error = _error(message)
        if error.code == _NOT_FOUND:
            return None
        raise error

    async def from_leader(self, which: Mapping[str, Any]) -> Stored | None:
        """The message that ``which`` names, from the stream's leader."""
        reply = await self._publisher.ask(f"$JS.API.STREAM.MSG.GET.{self._stream}", orjson.dumps(which))
        try:
            said = accepted(reply.data)["message"]
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        data, headers = (base64.b64decode(said.get(part, "")) for part in ("data", "hdrs"))
        return Stored(said["seq"], said["subject"], data, _headers(headers), said["time"])

    async def page(self, subject: str, seq: int, limit: int = PAGE, max_bytes: int = PAGE_BYTES) -> Page:
        """Messages on ``subject`` from ``seq`` on."""
        await self._open()
        self._count += 1
        token = str(self._count)
        gathering = self._pages[token] = _Gathering()
        nc = self._publisher.nc
        unlisten = nc.on_reconnect(lambda: gathering.lose("the connection was lost")) if isinstance(nc, Connection) else None
        ask = {"batch": limit, "seq": max(seq, 1), "next_by_subj": subject, "max_bytes": max_bytes}
        try:
            await self._publisher.tell(f"$JS.API.DIRECT.GET.{self._stream}", orjson.dumps(ask), reply=self._prefix + token)
            return await gathering.whole()
        finally:
            del self._pages[token]
            if unlisten is not None:
                unlisten()

    async def all(self, subject: str, seq: int = 1) -> AsyncIterator[Stored]:
        """Every message on ``subject`` from ``seq`` on, page by page."""
        while seq:
            page = await self.page(subject, seq)
            for message in page.messages:
                yield message
            seq = page.next_seq

    async def close(self) -> None:
        if self._subscription is not None and not self._publisher.nc.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def _open(self) -> None:
        async with self._opening:
            if self._subscription is None:
                inbox = self._publisher.nc.new_inbox()
                self._subscription = await self._publisher.nc.subscribe(
                    inbox + ".*", cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
                )
                self._prefix = inbox + "."

    async def _receive(self, message: Msg) -> None:
        gathering = self._pages.get(message.subject[len(self._prefix) :])
        if gathering is not None:
            gathering.add(message)


class _Gathering:
    """Collects the messages of one page until the status that ends it."""

    def __init__(self) -> None:
        self._messages: list[Stored] = []
        self._page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()

    async def whole(self) -> Page:
        """The page. Raises ``UnansweredError`` when it stops before its end."""
        while True:
            heard = len(self._messages)
            done, _ = await asyncio.wait([self._page], timeout=SILENCE_S)
            if done:
                return self._page.result()
            if len(self._messages) == heard:
                raise UnansweredError("a page stopped before its end")

    def add(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status")
        if self._page.done():
            return
        if status is None:
            self._messages.append(_stored(message))
        elif status == str(_NOT_FOUND):
            self._page.set_result(Page([], 0))
        elif status != "204":
            self._page.set_exception(_error(message))
        else:
            last_seq, pending = int(headers.get("Nats-Last-Sequence", "0")), int(headers.get("Nats-Num-Pending", "0"))
            if self._messages and self._messages[-1].seq != last_seq:
                self.lose("a page arrived with a hole in it")
            else:
                self._page.set_result(Page(self._messages, last_seq + 1 if pending else 0))

    def lose(self, why: str) -> None:
        """The rest will not come."""
        if not self._page.done():
            self._page.set_exception(UnansweredError(why))


def _error(message: Msg) -> ApiError:
    headers = message.headers or {}
    return ApiError({"code": int(headers.get("Status", "500")), "description": headers.get("Description", "direct get")})


def _stored(message: Msg) -> Stored:
    headers = message.headers or {}
    others = {name: value for name, value in headers.items() if name not in _ABOUT}
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data, others, headers.get("Nats-Time-Stamp", ""))


def _headers(raw: bytes) -> dict[str, str]:
    lines = (line.partition(b":") for line in raw.split(b"\r\n")[1:] if line)
    return {name.decode("ascii", "replace").strip(): value.decode("utf-8", "replace").strip() for name, _, value in lines}


async def get(nc: Client, stream: str, *, leader: bool = False, within: float = WITHIN_S, **which: Any) -> Stored | None:
    """The message that ``seq=…`` or ``last_by_subj=…`` names, or None, asked for again. Raises ``Refused`` (``bus.unavailable``)."""
    reader = Reader(Publisher(nc), stream)
    return await patiently(lambda _: (reader.from_leader if leader else reader.from_anyone)(which), within)


async def batch(
    nc: Client, stream: str, subject: str, seq: int = 1, count: int = PAGE, max_bytes: int = PAGE_BYTES, within: float = WITHIN_S
) -> Page:
    """Up to ``count`` messages on ``subject`` from sequence ``seq`` on. An answer that was cut off is asked for again.

    Raises ``Refused`` (``bus.unavailable``, retryable).
    """
    reader = Reader(Publisher(nc), stream)
    try:
        return await patiently(lambda _: reader.page(subject, seq, count, max_bytes), within)
    finally:
        await reader.close()
