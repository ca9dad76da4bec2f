"""Lanes: orders on their way to one node. The control plane sends, the node's agent reads, in order and at least once (design.md §7).

A node may pull and ack on its lane but not create its consumer: a consumer's configuration can name any subject of the control plane's
account to deliver to, which would let a node write events. So the control plane attaches it, asked on ``strand.attach.<node>``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Self

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from pydantic import ValidationError

from bus import answers, subjects
from bus.reader import Delivery, Item, Reader, Work, ensure_consumer
from bus.requests import PATIENCE_S, WITHIN_S, ApiError, call, request, store
from bus.requests import Ack as Stored
from bus.streams import lane_entry, lane_shards, lane_stream
from domain.kernel.errors import Refused
from domain.nodes.orders import Order, Verb

log = structlog.get_logger(__name__)

Ack = Delivery[Order]
Handle = Callable[[Order, Ack], Awaitable[None]]
Begun = Callable[[Order], Awaitable[int]]

LANE_WORK: Final = Work(tries=5)
CRASHES: Final = 3
"""How often an order may be begun without an end before it is taken for the reason why its agent dies."""
_BYSTANDERS: Final = frozenset({Verb.SANDBOX_EXEC})
"""Orders that wait for earlier ones of their key but do not hold later ones back: they may run for minutes and change no state."""
_ABSENT: Final = 404


# strand.attach.<node>
def attach_subject(node: str) -> str:
    return f"strand.attach.{subjects.token(node)}"


async def send(nc: Client, node: str, order: Order, *, shards: int = 1, within: float = WITHIN_S, again: str = "") -> Stored:
    """Put an order on a node's lane and wait until it is stored. The same order id again, within two minutes, changes nothing.

    ``again``: put it there once more under this name, for whoever has missed the answer; the node does not carry it out twice.
    Raises ``Refused`` (``bus.unavailable``, retryable) when nobody said within ``within`` seconds whether it is stored.
    """
    name = f"{order.id}:{again}" if again else order.id
    return await store(nc, lane_entry(node, order.verb, shards), order.model_dump_json().encode(), msg_id=name, within=within)


async def attach(nc: Client, node: str, *, fresh: bool, shards: int = 1, work: Work = LANE_WORK) -> None:
    """Make sure that a node's consumer exists. ``fresh``: an agent has just started and wants everything that is not done, in order."""
    await ensure_consumer(nc, lane_stream(node, shards), node, subjects.lane_of(node), work, memory=True, fresh=fresh)


async def remove(nc: Client, node: str, *, shards: int = 1) -> None:
    """End a lane for good, for a node that is evicted: no consumer, and no orders that a successor of that name would find."""
    stream = lane_stream(node, shards)
    try:
        await call(nc, f"CONSUMER.DELETE.{stream}.{node}")
    except ApiError as error:
        if error.code != _ABSENT:
            raise
    await call(nc, f"STREAM.PURGE.{stream}", {"filter": subjects.lane_of(node)})


class LaneReader(Reader[Order]):
    """An agent's end of its lane: ``handle(order, ack)`` for each order, equal keys one after the other, others side by side.

    A handler that returns has done the order; it may also ``ack``, ``nak(delay)`` (handle it again here) or ``term(reason)`` itself.
    ``begun`` counts, durably, how often an order was begun; an order that was begun ``CRASHES`` times and is here again is terminated.
    ``arrived`` is told of each order when it is received, long before its turn perhaps: an order may cut earlier ones of its key short.
    ``shards``: None to be told by whoever attaches it.
    """

    def __init__(
        self,
        nc: Client,
        node: str,
        handle: Handle,
        *,
        shards: int | None = None,
        work: Work = LANE_WORK,
        begun: Begun | None = None,
        arrived: Callable[[Order], None] | None = None,
    ) -> None:
        self._node = node
        self._shards = shards
        self._given = handle
        self._begun = begun

        def decode(message: Msg) -> Item[Order]:
            item = decode_order(message)
            if arrived is not None:
                arrived(item.value)
            return item

        super().__init__(nc, lane_stream(node, shards or 1), node, self._attach, decode, self._carry_out, work, owner=node, renewed=True)

    async def _carry_out(self, order: Order, ack: Ack) -> None:
        if self._begun is not None and (count := await self._begun(order)) > CRASHES:
            await ack.term(f"{order.id}: begun {count - 1} times and never ended; it seems to kill its agent")
            return
        await self._given(order, ack)

    async def _attach(self, fresh: bool) -> None:
        try:
            reply = await request(self._nc, attach_subject(self._node), orjson.dumps({"fresh": fresh}), {}, PATIENCE_S)
        except Refused as refused:
            if refused.code != "bus.unavailable":
                raise
        else:
            self._pull.stream = lane_stream(self._node, self._shards or int(answers.read(reply).get("shards", 1)))
            return
        # nobody serves it: without accounts the agent has the rights itself, with them this is refused and tried again
        self._pull.stream = lane_stream(self._node, self._shards or await lane_shards(self._nc))
        await ensure_consumer(
            self._nc, self._pull.stream, self._node, subjects.lane_of(self._node), self._work,
            memory=True, fresh=fresh, within=PATIENCE_S / 2,
        )  # fmt: skip


def decode_order(message: Msg) -> Item[Order]:
    """The order in a message. Raises ``ValueError``."""
    try:
        order = Order.model_validate_json(message.data)
    except ValidationError as error:
        raise ValueError(f"not an order: {error.error_count()} faults, first {error.errors(include_input=False)[0]['msg']}") from None
    return Item(order, order.key, order.id, holds=order.verb not in _BYSTANDERS)


class LaneKeeper:
    """The control plane's answer to agents that want to be attached. ``admit(node)`` says whether that node is one of ours."""

    def __init__(
        self, nc: Client, admit: Callable[[str], Awaitable[bool]] | None = None, *, shards: int = 1, work: Work = LANE_WORK
    ) -> None:
        self._nc = nc
        self._admit = admit
        self._shards = shards
        self._work = work
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._nc.subscribe("strand.attach.*", queue="q", cb=self._answer)
        await self._nc.flush()

    async def close(self) -> None:
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _answer(self, message: Msg) -> None:
        if not answers.is_inbox(message.reply):
            log.warning("lanes.reply-refused", subject=message.subject, reply=message.reply)
            return
        node = message.subject.rsplit(".", 1)[1]
        try:
            reply = await self._attached(node, fresh=b'"fresh":true' in message.data)
        except Refused as refused:
            reply = answers.refusal(None, refused)
        except (ApiError, NatsError, ValueError) as error:
            log.warning("lanes.not-attached", node=node, error=repr(error))
            reply = answers.refusal(None, Refused("bus.unavailable", "the lane cannot be attached now", retryable=True))
        await self._nc.publish(message.reply, reply)

    async def _attached(self, node: str, *, fresh: bool) -> bytes:
        if self._admit is not None and not await self._admit(node):
            raise Refused("node.not-found", f"no node {node!r}")
        await attach(self._nc, node, fresh=fresh, shards=self._shards, work=self._work)
        return answers.found(0, {"shards": self._shards})
