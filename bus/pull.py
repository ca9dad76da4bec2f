"""A long pull on one consumer, read by callback, watched and mended for ever: what every kind of reader stands on.

nats-py's own ``fetch`` and ``next_msg`` cost three times as much, block on full ack windows and stay silent about a consumer that is gone
(reference/jetstream-eventstore.md §1.5, §3.3, §4 pitfall 7). Here the server's own words decide: expired pulls and changes of leader are
asked again, a missing consumer is attached again, and silence beyond two heartbeats counts as a lost pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

import nats.errors
import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.connection import Connection
from bus.headers import parse_headers

log = structlog.get_logger(__name__)

EXPIRES_S: Final = 30
HEARTBEAT_S: Final = 2
SILENCE_S: Final = 5.0
"""Two heartbeats missed, and a bit."""
NANO: Final = 1_000_000_000
LONGEST_PAUSE_S: Final = 2.0
_RECONNECTED: Final = "reconnected"
_GONE: Final = ("404", "503", "409 Consumer Deleted", "409 Consumer is push")


class Delivered(NamedTuple):
    """A message as it came in: bytes, because most readers want no more than ``data``."""

    subject: bytes
    reply: bytes
    data: bytes
    headers: bytes | None

    def message(self, nc: Client) -> Msg:
        """The same as nats-py has it."""
        return Msg(nc, bytes(self.subject).decode(), bytes(self.reply).decode(), self.data, parse_headers(self.headers) or None)


_delivered: Final = partial(tuple.__new__, Delivered)
"""What a ``NamedTuple`` does, at half the price."""

Attach = Callable[[bool], Awaitable[str]]
Receive = Callable[[Delivered, int, int], int]


class Pull:
    """One consumer's messages, at most ``window`` of them asked for and not yet taken off.

    ``attach(fresh)`` makes sure that the consumer exists and names it; ``fresh`` is true until it has worked once. ``receive(message,
    stream sequence, how many are still to come)`` is called with each, in order, must not wait, and returns how many the owner has not
    taken care of yet. ``gapless``: the consumer has delivered nothing when it is attached, and is attached again whenever a delivery may
    be lost; without that the server delivers it again by itself. ``renewed``: after a reconnect it is attached again, as ``fresh``, so that
    what was sent into the lost connection comes at once and before anything newer. ``nc`` is a ``Connection``: messages are taken in its
    read loop.
    """

    def __init__(
        self, nc: Client, stream: str, attach: Attach, receive: Receive, *, window: int, gapless: bool = False, renewed: bool = False
    ) -> None:
        self._nc = nc
        self.stream = stream
        """Where the consumer is; ``attach`` may find out that it is elsewhere."""
        self._attach = attach
        self._receive = receive
        self._window = window
        self._gapless = gapless
        self._renewed = renewed
        self._subject = ""
        self._inbox = ""
        self._number = 0
        self._asked = 0
        self._backlog = 0
        self._consumer_seq = 0
        self._heard = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._why = "not begun"
        self._ended.set()
        self.attached = asyncio.Event()

    async def run(self) -> None:
        """Pull until cancelled."""
        unlisten = self._nc.on_reconnect(lambda: self._end(_RECONNECTED)) if isinstance(self._nc, Connection) else None
        fresh, failures = True, 0
        try:
            while True:
                began = time.monotonic()
                try:
                    consumer = await self._attach(fresh)
                    fresh = False
                    why = await self._receive_from(consumer)
                except Exception as error:  # noqa: BLE001 - whatever it is: a reader that stops without a word is worse
                    why = repr(error)[:500]
                fresh = fresh or (self._renewed and why == _RECONNECTED)
                failures = 0 if self._consumer_seq or time.monotonic() - began > SILENCE_S else failures + 1
                self._consumer_seq = 0
                (log.warning if failures else log.info)("pull.detached", stream=self.stream, why=why, failures=failures)
                await asyncio.sleep(_pause(failures))
        finally:
            if unlisten is not None:
                unlisten()

    async def ask(self, backlog: int) -> None:
        """Ask for more, when at least half of the window is free. ``backlog`` is what the owner has not taken care of yet."""
        if not self._wants_more(backlog):
            return
        free = self._window - self._asked - backlog
        self._asked += free
        body = {"batch": free, "expires": EXPIRES_S * NANO, "idle_heartbeat": HEARTBEAT_S * NANO}
        try:
            await self._nc.publish(self._subject, orjson.dumps(body), reply=f"{self._inbox}.{self._number}")
        except (nats.errors.Error, OSError) as error:
            self._end(repr(error))

    def _wants_more(self, backlog: int) -> bool:
        self._backlog = backlog
        return (self._window - self._asked - backlog) * 2 >= self._window and not self._ended.is_set()

    async def _receive_from(self, consumer: str) -> str:
        """Pull until this consumer has to be attached again; why."""
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
        self._inbox = self._nc.new_inbox()
        self._backlog = 0
        subscription = await self._subscribe(f"{self._inbox}.*")
        failures = 0
        try:
            while True:
                self._number += 1
                self._asked = 0
                began = self._heard = time.monotonic()
                self._ended.clear()
                await self.ask(self._backlog)
                self.attached.set()
                why = await self._end_of_pull()
                if self._gapless or why.startswith(_GONE) or (self._renewed and why == _RECONNECTED):
                    return why
                log.info("pull.again", subject=self._subject, why=why)
                failures = 0 if time.monotonic() - began > SILENCE_S else failures + 1
                await asyncio.sleep(_pause(failures))
        finally:
            self._end("detached")
            self.attached.clear()
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    async def _subscribe(self, subject: str) -> Subscription:
        if not isinstance(self._nc, Connection):
            raise TypeError("only our own connections hand over messages directly")
        return await self._nc.subscribe_directly(subject, self._take)

    def _take(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if self._ended.is_set() and (self._gapless or (self._renewed and self._why == _RECONNECTED)):
            return
        if headers and not data and "Status" in (status := parse_headers(headers)):
            backlog = self._on_status(subject, status)
        else:
            backlog = self._on_delivery(_delivered((subject, reply, data, headers)))
            if self._asked * 2 > self._window:  # most messages: nothing more is to be asked for, whatever the backlog
                self._backlog = backlog or 0
                return
        if backlog is not None and self._wants_more(backlog):
            self._asking = asyncio.create_task(self.ask(backlog))

    async def _end_of_pull(self) -> str:
        """Why the server sends nothing more: silence while something was asked for is one reason."""
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(SILENCE_S / 2):
                    await self._ended.wait()
            except TimeoutError:
                if self._asked and time.monotonic() - self._heard > SILENCE_S:
                    self._end("silence")
        return self._why

    def _end(self, why: str) -> None:
        """Nothing more is to be expected of the pull that is open."""
        if not self._ended.is_set():
            self._why = why
            self._ended.set()

    def _on_delivery(self, message: Delivered) -> int | None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>
        _, seq, consumer_seq, _, pending = message.reply.rsplit(b".", 4)
        number = int(consumer_seq)
        if self._gapless and number != self._consumer_seq + 1:
            self._end(f"delivery {self._consumer_seq + 1} is missing")
            return None
        self._consumer_seq = number
        self._heard = time.monotonic()
        if self._asked:  # one of a lost pull only makes the next come early
            self._asked -= 1
        return self._receive(message, int(seq), int(pending))

    def _on_status(self, subject: bytes, headers: Mapping[str, str]) -> int | None:
        status = headers["Status"]
        if not subject.endswith(b".%d" % self._number):
            return None  # of a pull that was given up
        self._heard = time.monotonic()
        if status == "100":
            return None
        if status == "408":
            self._asked -= min(int(headers.get("Nats-Pending-Messages", self._asked)), self._asked)
            return self._backlog if self._asked == 0 else None
        self._end(f"{status} {headers.get('Description', '')}")
        return None


def _pause(failures: int) -> float:
    pause: float = min(0.02 * 2**failures, LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads readers, guards nothing
