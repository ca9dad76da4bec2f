"""Reading stored messages without a consumer: direct gets, fast but perhaps a moment behind, and gets from the leader, which are not.

On a replicated stream a direct get may be answered by a follower: 1 to 7 % are stale right after one's own write
(reference/jetstream-eventstore.md §1.4). Decisions survive that by their optimistic lock; after a conflict the leader is asked.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.publishing import Publisher, RejectedError, UnansweredError

PAGE: Final = 1000
"""Messages per direct-get batch; larger batches are no faster (reference §3.3)."""
PAGE_BYTES: Final = 16 << 20
PAGE_S: Final = 5.0


class Stored(NamedTuple):
    """A message in a stream."""

    seq: int
    subject: str
    data: bytes


class Page(NamedTuple):
    """Some messages in order, and where the next page begins; 0 when this was the last."""

    messages: list[Stored]
    next_seq: int


class Reader:
    """Reads one stream. Raises ``UnansweredError`` when the bus does not answer, ``RejectedError`` when it refuses."""

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
        message = await self._publisher.ask(f"$JS.API.DIRECT.GET.{self._stream}", orjson.dumps({"last_by_subj": subject}))
        return _stored(message)

    async def leader_last(self, subject: str) -> Stored | None:
        """The last message on ``subject`` as the stream's leader has it."""
        return await self._from_leader({"last_by_subj": subject})

    async def leader_at(self, seq: int) -> Stored | None:
        """The message at ``seq`` as the stream's leader has it."""
        return await self._from_leader({"seq": seq})

    async def position(self) -> int:
        """The stream's last sequence, from its leader."""
        said = await self._api(f"STREAM.INFO.{self._stream}", {})
        return int(said["state"]["last_seq"])

    async def page(self, subject: str, seq: int, limit: int = PAGE) -> Page:
        """Messages on ``subject`` from ``seq`` on."""
        await self._open()
        self._count += 1
        token = str(self._count)
        gathering = self._pages[token] = _Gathering()
        ask = {"batch": limit, "seq": max(seq, 1), "next_by_subj": subject, "max_bytes": PAGE_BYTES}
        try:
            await self._publisher.tell(f"$JS.API.DIRECT.GET.{self._stream}", orjson.dumps(ask), reply=self._prefix + token)
            async with asyncio.timeout(PAGE_S):
                return await gathering.page
        except TimeoutError as error:
            raise UnansweredError(f"no page of {self._stream} in time") from error
        finally:
            del self._pages[token]

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

    async def _from_leader(self, which: dict[str, Any]) -> Stored | None:
        try:
            said = (await self._api(f"STREAM.MSG.GET.{self._stream}", which))["message"]
        except RejectedError as error:
            if error.code == 404:
                return None
            raise
        return Stored(said["seq"], said["subject"], base64.b64decode(said.get("data", "")))

    async def _api(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self._publisher.ask(f"$JS.API.{verb}", orjson.dumps(body) if body else b"")
        said: dict[str, Any] = orjson.loads(reply.data)
        error = said.get("error")
        if error is None:
            return said
        refusal = RejectedError(error.get("code", 500), error.get("err_code", 0), error.get("description", "refused"))
        if refusal.passing:
            raise UnansweredError(str(refusal)) from refusal
        raise refusal

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
        self.page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()

    def add(self, message: Msg) -> None:
        if self.page.done():
            return
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self._messages.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data))
        elif status == "404":
            self.page.set_result(Page([], 0))
        elif status == "204":
            self._finish(int(headers.get("Nats-Last-Sequence", "0")), int(headers.get("Nats-Num-Pending", "0")))
        else:
            self.page.set_exception(UnansweredError(f"direct get: status {status} {headers.get('Description', '')}"))

    def _finish(self, last_seq: int, pending: int) -> None:
        if self._messages and self._messages[-1].seq != last_seq:
            self.page.set_exception(UnansweredError("a page arrived with a hole in it"))
        else:
            self.page.set_result(Page(self._messages, last_seq + 1 if pending else 0))


def _stored(message: Msg) -> Stored | None:
    headers = message.headers or {}
    if headers.get("Status") == "404":
        return None
    if "Nats-Sequence" not in headers:
        raise UnansweredError(f"direct get: status {headers.get('Status')} {headers.get('Description', '')}")
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data)
