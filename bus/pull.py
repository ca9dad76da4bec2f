"""A long pull on one consumer, read by callback and watched: what both kinds of subscription stand on.

nats-py's own ``fetch`` and ``next_msg`` cost three times as much and stay silent about a consumer that is gone
(reference/jetstream-eventstore.md §3.3, §4 pitfall 7). A :class:`Pull` never mends itself: it says that it is ``broken``, and its owner
makes a new consumer from where it knows it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.connection import Connection
from bus.publishing import RejectedError, UnansweredError

EXPIRES_S: Final = 30
HEARTBEAT_S: Final = 2
SILENCE_S: Final = 5.0
"""Two heartbeats missed, and a bit."""
NANO: Final = 1_000_000_000


class Delivery(NamedTuple):
    """A message of a consumer: its position in the stream, how many are still to come, and where acknowledgements go."""

    seq: int
    pending: int
    subject: str
    reply: str
    data: bytes


class Pull:
    """One consumer's messages, at most ``window`` of them asked for and not yet taken off.

    ``receive`` is called with each, in order, and returns how many the owner has not taken care of yet.
    """

    def __init__(self, nc: Client, stream: str, consumer: str, receive: Callable[[Delivery], int], *, window: int) -> None:
        self._nc = nc
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._receive = receive
        self._window = window
        self._asked = 0
        self._consumer_seq = 0
        self._heard = 0.0
        self._subscription: Subscription | None = None
        self._inbox = nc.new_inbox()
        self._unlisten = nc.on_reconnect(lambda: self.fail("reconnected")) if isinstance(nc, Connection) else None
        self.broken = asyncio.Event()
        self.why = ""

    async def open(self) -> None:
        """Begin to receive."""
        self._heard = asyncio.get_running_loop().time()
        self._subscription = await self._nc.subscribe(self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0)
        await self.ask(0)

    async def close(self) -> None:
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def ask(self, backlog: int) -> None:
        """Ask for more, when at least half of the window is free. ``backlog`` is what the owner has not taken care of yet."""
        free = self._window - self._asked - backlog
        if free * 2 < self._window or self.broken.is_set():
            return
        self._asked += free
        body = {"batch": free, "expires": EXPIRES_S * NANO, "idle_heartbeat": HEARTBEAT_S * NANO}
        try:
            await self._nc.publish(self._subject, orjson.dumps(body), reply=self._inbox)
        except (nats.errors.Error, OSError) as error:
            self.fail(repr(error))

    async def watch(self) -> str:
        """Returns the reason when this pull is broken: silence while something was asked for is one."""
        loop = asyncio.get_running_loop()
        while not self.broken.is_set():
            try:
                async with asyncio.timeout(SILENCE_S / 2):
                    await self.broken.wait()
            except TimeoutError:
                if self._asked and loop.time() - self._heard > SILENCE_S:
                    self.fail("silence")
        return self.why

    def fail(self, why: str) -> None:
        """Say that nothing more is to be expected."""
        if not self.broken.is_set():
            self.why = why
            self.broken.set()

    async def _on_message(self, message: Msg) -> None:
        if self.broken.is_set():
            return
        self._heard = asyncio.get_running_loop().time()
        if message.headers and "Status" in message.headers and not message.data:
            backlog = self._on_status(message.headers)
        else:
            backlog = self._on_delivery(message)
        if backlog is not None:
            await self.ask(backlog)

    def _on_delivery(self, message: Msg) -> int | None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>
        _, seq, consumer_seq, _, pending = message.reply.rsplit(".", 4)
        number = int(consumer_seq)
        if number != self._consumer_seq + 1:  # both kinds of owner begin with a consumer that has delivered nothing
            self.fail(f"delivery {self._consumer_seq + 1} is missing")
            return None
        self._consumer_seq = number
        self._asked -= 1
        return self._receive(Delivery(int(seq), int(pending), message.subject, message.reply, message.data))

    def _on_status(self, headers: dict[str, str]) -> int | None:
        status = headers["Status"]
        if status == "100":
            return None
        if status == "408":
            self._asked -= int(headers.get("Nats-Pending-Messages", self._asked))
            return 0 if self._asked == 0 else None
        self.fail(f"{status} {headers.get('Description', '')}")
        return None


async def api(nc: Client, verb: str, body: dict[str, Any], timeout: float = 5) -> dict[str, Any]:
    """One JetStream API request. Raises ``RejectedError``, ``UnansweredError``."""
    try:
        reply = await nc.request(f"$JS.API.{verb}", orjson.dumps(body), timeout=timeout)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise UnansweredError(repr(error)) from error
    said: dict[str, Any] = orjson.loads(reply.data)
    refusal = said.get("error")
    if refusal is not None:
        raise RejectedError(refusal.get("code", 500), refusal.get("err_code", 0), refusal.get("description", "refused"))
    return said


def heed_cancellation() -> None:
    """Raise the cancellation that ``asyncio.wait_for`` of Python 3.11, in nats-py's requests, drops when the answer comes just then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def kept_open(make: Callable[[], Awaitable[Pull]], report: Callable[[str], None]) -> None:
    """Pulls for ever: makes one, watches it, and makes the next when it breaks. ``report`` hears why."""
    pause = 0.02
    while True:
        pull: Pull | None = None
        try:
            pull = await make()
            await pull.open()
            heed_cancellation()
            why = await pull.watch()
            pause = 0.02
        except (UnansweredError, RejectedError, nats.errors.Error) as error:
            why = repr(error)
        finally:
            if pull is not None:
                await _quietly(pull)
        report(why)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)


async def _quietly(pull: Pull) -> None:
    try:
        await pull.close()
    except (nats.errors.Error, OSError):
        return
