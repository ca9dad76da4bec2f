"""Discovery by the nats.micro protocol (ADR-32): answers PING, INFO and STATS, so that ``nats service ls|info|stats`` work.

The subscriptions of the endpoints themselves are not here: nats-py's own service runs the handlers of an endpoint one after another and
would count hand-overs instead of work (reference/jetstream-eventstore.md §1.6), so callers count into :class:`Tally` what really happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import INFO_RESPONSE_TYPE, PING_RESPONSE_TYPE, STATS_RESPONSE_TYPE, EndpointInfo, EndpointStats

from bus.answers import dump, is_inbox

QUEUE: Final = "q"
"""Queue group of all endpoints (the protocol's default): of several processes one answers."""


@dataclass(slots=True)
class Tally:
    """One endpoint: what it is, and what has happened on it."""

    name: str
    subject: str
    metadata: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    errors: int = 0
    nanoseconds: int = 0
    last_error: str = ""

    def count(self, nanoseconds: int, error: str = "") -> None:
        """One more request is finished."""
        self.requests += 1
        self.nanoseconds += nanoseconds
        if error:
            self.errors += 1
            self.last_error = error

    def info(self) -> dict[str, Any]:
        return EndpointInfo(self.name, self.subject, QUEUE, self.metadata).to_dict()

    def stats(self) -> dict[str, Any]:
        average = self.nanoseconds // self.requests if self.requests else 0
        return EndpointStats(
            self.name, self.subject, QUEUE, self.requests, self.errors, self.nanoseconds, average, self.last_error
        ).to_dict()


class Discovery:
    """One instance of a service: its identity, its endpoints, and the nine subjects on which it answers questions about them."""

    def __init__(self, nc: Client, name: str, version: str, description: str) -> None:
        self._nc = nc
        self._identity = {"name": name, "id": nc._nuid.next().decode(), "version": version, "metadata": {}}  # noqa: SLF001 - ids as the protocol wants them
        self._description = description
        self._started = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []
        self.tallies: list[Tally] = []

    def add(self, name: str, subject: str, metadata: dict[str, str] | None = None) -> Tally:
        """Announce one more endpoint."""
        tally = Tally(name, subject, metadata or {})
        self.tallies.append(tally)
        return tally

    async def start(self) -> None:
        """Begin to answer."""
        name, identity = self._identity["name"], self._identity["id"]
        for verb, answer in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{identity}"):
                self._subscriptions.append(await self._nc.subscribe(subject, cb=self._answering(answer)))

    async def stop(self) -> None:
        """Nobody finds this instance any more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    def _answering(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Msg], Any]:
        async def callback(message: Msg) -> None:
            if is_inbox(message.reply):
                await self._nc.publish(message.reply, dump(answer()))

        return callback

    def _ping(self) -> dict[str, Any]:
        return {"type": PING_RESPONSE_TYPE, **self._identity}

    def _info(self) -> dict[str, Any]:
        said = {"type": INFO_RESPONSE_TYPE, **self._identity, "description": self._description}
        return {**said, "endpoints": [tally.info() for tally in self.tallies]}

    def _stats(self) -> dict[str, Any]:
        started = self._started.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"type": STATS_RESPONSE_TYPE, **self._identity, "started": started, "endpoints": [tally.stats() for tally in self.tallies]}
