"""Working off a durable consumer: several messages in hand, equal keys strictly in order, each settled once its handler is done.

The order is kept through failures: a message whose handler fails is tried again here, holding its key, instead of being given back. Only
what cannot be read, is refused for good, or has failed too often is terminated with its reason, which puts it into ``DEAD``. A copy of it
goes there first: a work queue forgets what is terminated (``bus/dead.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus import dead
from bus.pull import NANO, Delivered, Pull
from bus.requests import call
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

T = TypeVar("T")

ACK: Final = b"+ACK"
PROGRESS: Final = b"+WPI"
REMEMBERED: Final = 4096
"""How many settled messages are known again, so that one whose ack was lost is settled again and not handled again."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a reader needs to know besides where the messages come from.

    ``limit``: messages in hand (also the consumer's ack window); ``parallel``: handlers at the same time; ``tries``: how often a message is
    handled before it is given up; ``pauses``: seconds between tries, the last one repeated; ``ack_wait``: seconds after which the server
    gives a message of a dead reader to the next one.
    """

    limit: int = 256
    parallel: int = 64
    tries: int = 8
    pauses: tuple[float, ...] = (0.1, 0.5, 2, 5, 10, 20)
    ack_wait: float = 30
    grace: float = 10


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """A decoded message. ``holds``: later items of the same key wait for this one. ``name`` says in logs and reasons which one it is."""

    value: T
    key: str
    name: str
    holds: bool = True


@dataclass(slots=True, eq=False)
class Delivery(Generic[T]):
    """A message in hand. Its handler may settle it early; otherwise returning is an ack."""

    item: Item[T]
    place: tuple[int, int]
    """Stream sequence and time of storing: together they name a message even when the stream was made anew."""
    reply: str
    deliveries: int
    publish: Callable[[str, bytes], Awaitable[None]] = field(repr=False)
    bury: Callable[[str], Awaitable[None]] = field(repr=False)
    settled: bytes | None = None
    again: float | None = None
    failures: int = 0
    """How often its handler has failed here."""

    async def ack(self) -> None:
        """Done: the server forgets the message."""
        await self._settle(ACK)

    async def nak(self, delay: float = 0) -> None:
        """Not now: handle it again after ``delay`` seconds. Later messages of its key keep waiting."""
        self.again = delay

    async def term(self, reason: str) -> None:
        """Never: it goes to ``DEAD`` with this reason, and with its body."""
        if self.settled is None:
            said = " ".join(reason.split())[:512]
            await self.bury(said)
            await self._settle(b"+TERM " + said.encode())

    async def in_progress(self) -> None:
        """Still at it. Readers say so by themselves for everything in hand."""
        await self.publish(self.reply, PROGRESS)

    async def _settle(self, how: bytes) -> None:
        if self.settled is None:
            self.settled = how
            await self.publish(self.reply, how)


class Reader(Generic[T]):
    """Takes messages of one durable consumer, decodes them, and hands them over. ``async with`` it, or ``run`` it.

    ``decode`` raises ``ValueError`` for what is no message of this kind. ``owner``: in whose name dead letters are kept. ``renewed``: see
    ``Pull``; for a consumer that has one reader only.
    """

    def __init__(
        self,
        nc: Client,
        stream: str,
        durable: str,
        attach: Callable[[bool], Awaitable[None]],
        decode: Callable[[Msg], Item[T]],
        handle: Callable[[T, Delivery[T]], Awaitable[None]],
        work: Work,
        owner: str = dead.CONTROL,
        *,
        renewed: bool = False,
    ) -> None:
        self._nc = nc
        self._name = f"{stream}/{durable}"
        self._buried = partial(dead.keep, nc, owner, stream)
        self._decode = decode
        self._handle = handle
        self._work = work

        async def named(fresh: bool) -> str:
            await attach(fresh)
            return durable

        self._pull = Pull(nc, stream, named, self._receive, window=work.limit, renewed=renewed)
        self._held: dict[tuple[int, int], Delivery[T]] = {}
        self._settled: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._tails: dict[str, asyncio.Future[None]] = {}
        self._places = asyncio.Semaphore(work.parallel)
        self._bystanders = asyncio.Semaphore(work.parallel)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    @property
    def in_hand(self) -> int:
        """How many messages were received and are not settled yet."""
        return len(self._held)

    async def start(self) -> None:
        """Begin in the background. Does not wait for the bus."""
        self._loops = [asyncio.create_task(self._pull.run()), asyncio.create_task(self._keep_alive())]

    async def ready(self) -> None:
        """Wait until the consumer exists and a pull is open."""
        await self._pull.attached.wait()

    async def run(self) -> None:
        """Work until cancelled."""
        async with self:
            await asyncio.gather(*self._loops)

    async def close(self) -> None:
        """Take nothing new, let handlers finish for ``grace`` seconds, give back what is left."""
        for loop in self._loops[:1]:
            loop.cancel()
        running = [task for task in self._tasks if not task.done()]
        if running:
            await asyncio.wait(running, timeout=self._work.grace)
        for task in (*self._tasks, *self._loops):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._loops, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _receive(self, message: Delivered, _seq: int, _pending: int) -> int:
        self._take(message.message(self._nc))
        return 0  # the consumer's ack window bounds what is in hand

    def _take(self, message: Msg) -> None:
        meta = message.metadata
        place = (meta.sequence.stream, int(meta.timestamp.timestamp() * 1_000_000))
        held = self._held.get(place)
        if held is not None:  # redelivered while in hand: from now on the server listens to this reply
            held.reply = message.reply
            if held.settled is not None:
                self._spawn(self._publish(held.reply, held.settled))
            return
        if place in self._settled:  # its ack was lost
            self._spawn(self._publish(message.reply, self._settled[place]))
            return
        try:
            item = self._decode(message)
        except ValueError as error:
            log.warning("reader.undecodable", reader=self._name, subject=message.subject, seq=place[0], error=str(error)[:300])
            unreadable = Delivery(
                Item(None, "", ""), place, message.reply, meta.num_delivered, self._publish, partial(self._buried, message)
            )
            self._spawn(unreadable.term(f"undecodable: {error}"))
            return
        delivery = Delivery(item, place, message.reply, meta.num_delivered, self._publish, partial(self._buried, message))
        self._held[place] = delivery
        before = self._tails.get(item.key)
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if item.holds:
            self._tails[item.key] = end
        self._spawn(self._in_turn(delivery, before, end))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_turn(self, delivery: Delivery[T], before: asyncio.Future[None] | None, end: asyncio.Future[None]) -> None:
        try:
            if before is not None:
                await asyncio.shield(before)
            async with self._places if delivery.item.holds else self._bystanders:
                await self._until_settled(delivery)
        except asyncio.CancelledError:
            if delivery.settled is None:
                await self._publish(delivery.reply, b"-NAK")
            raise
        finally:
            self._held.pop(delivery.place, None)
            if delivery.settled is not None:
                self._settled[delivery.place] = delivery.settled
                if len(self._settled) > REMEMBERED:
                    self._settled.popitem(last=False)
            end.set_result(None)
            if self._tails.get(delivery.item.key) is end:
                del self._tails[delivery.item.key]

    async def _until_settled(self, delivery: Delivery[T]) -> None:
        work = self._work
        while True:
            delivery.again = None
            try:
                await self._handle(delivery.item.value, delivery)
                pause = delivery.again
                if delivery.settled is None and pause is None:
                    await delivery.ack()
            except Exception as error:  # noqa: BLE001 - whatever it is, the messages behind this one must go on
                delivery.failures += 1
                pause = work.pauses[min(delivery.failures, len(work.pauses)) - 1]
                if delivery.failures >= work.tries or (isinstance(error, Refused) and not error.retryable):
                    log.warning(
                        "reader.gave-up", reader=self._name, item=delivery.item.name, failures=delivery.failures, error=repr(error)[:500]
                    )
                    await delivery.term(f"{delivery.item.name}: {_reason(error)}")
                else:
                    log.info(
                        "reader.again", reader=self._name, item=delivery.item.name, failures=delivery.failures, error=repr(error)[:500]
                    )
            if delivery.settled is not None:
                return
            await asyncio.sleep(pause or 0)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._work.ack_wait / 3)
            if self._nc.is_connected:
                for delivery in list(self._held.values()):
                    if delivery.settled is None:
                        await delivery.in_progress()

    async def _publish(self, reply: str, payload: bytes) -> None:
        with contextlib.suppress(NatsError):  # a closed connection: the server gives the message to the next reader
            await self._nc.publish(reply, payload)


def _reason(error: Exception) -> str:
    return f"{error.code}: {error.message}" if isinstance(error, Refused) else f"{type(error).__name__}: {error}"


async def ensure_consumer(
    nc: Client, stream: str, durable: str, filter_subject: str, work: Work, *, memory: bool, fresh: bool, within: float = 10
) -> None:
    """Create the durable consumer, or mend it. ``fresh``: what an earlier reader had in hand is delivered again now, in order.

    A reset rather than waiting for ``ack_wait``: new messages would overtake those that a killed reader still had. Memory state costs a
    sixth (reference §3.6) and loses nothing on a work queue, where acked messages are gone from the stream itself.
    """
    config = {
        "durable_name": durable,
        "name": durable,
        "filter_subject": filter_subject,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(work.ack_wait * NANO),
        "max_deliver": -1,
        "max_ack_pending": work.limit,
        "mem_storage": memory,
    }
    verb = f"CONSUMER.CREATE.{stream}.{durable}.{filter_subject}"
    info = await call(nc, verb, {"stream_name": stream, "config": config}, within=within)
    if fresh and info.get("num_ack_pending"):
        await call(nc, f"CONSUMER.RESET.{stream}.{durable}", within=within)
