"""What a command handler or a process has in its hands: the store, the fleet, the lanes, the clock, and how to wait.

Nothing here decides whether a transition is legal; aggregates do (design.md §5).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bus import lanes, timers
from bus.metrics import Metrics
from bus.store import Committed, Part, Store
from domain.kernel.aggregate import Aggregate
from domain.kernel.command import Cause, canonical
from domain.kernel.errors import not_found
from domain.kernel.ids import derived
from domain.nodes.orders import Order, Verb

if TYPE_CHECKING:
    from bus.connection import Client
    from handlers.downloads import Links
    from handlers.fleet import Fleet
    from handlers.results import Results
    from handlers.waiting import Waiting

A = TypeVar("A", bound=Aggregate)

SYSTEM_ACTOR = "system"


@dataclass(frozen=True, slots=True)
class Because:
    """Why the control plane acts at this moment: the commit that woke it, and the W3C trace that this belongs to."""

    commit: str | None = None
    trace: str | None = None


_BECAUSE: ContextVar[Because] = ContextVar("because", default=Because())  # noqa: B039 - frozen


@contextmanager
def because(commit: str | None, trace: str | None) -> Iterator[None]:
    """Within it every order, and everything that the system asks of itself, says that this is why; tasks begun within it too."""
    token = _BECAUSE.set(Because(commit, trace))
    try:
        yield
    finally:
        _BECAUSE.reset(token)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each thing may take before it is given up (reference/cubesandbox.md §12 "Timers", reference/miren-sandbox.md §2).

    ``abandoned_s``: chunks in the object store that belong to nothing are removed when nothing was added to them for so long; a writer that
    lives adds one within a minute, or gives up (``bus/objects.py``). Looked for every ``collect_s``. ``orphan_ref_s``: how long a deleted
    snapshot is kept for a sandbox that nobody knows any more.
    """

    job_s: float = 900
    provision_s: float = 120
    operation_s: float = 120
    exec_slack_s: float = 15
    node_dead_s: float = 40
    storage_ease_s: float = 60
    watchdog_s: float = 5
    abandoned_s: float = 3600
    collect_s: float = 600
    orphan_ref_s: float = 86_400


@dataclass
class Control:
    """The control plane's parts. One per process; every handler and process manager is a function of it."""

    nc: Client
    store: Store
    fleet: Fleet
    waiting: Waiting
    results: Results
    deadlines: Deadlines = field(default_factory=Deadlines)
    shards: int = 1
    """Over how many streams the installation's lanes are spread."""
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while chunks are collected, and while what a node has stored is looked at: then nothing is taken that was found there."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    metrics: Metrics | None = None
    """None: nobody wants to know."""
    issuer: str = ""
    """Where tokens of workloads come from (``handlers/identity``); empty: sandboxes get none."""
    links: Links | None = None
    """None: this process serves no artifacts over HTTP."""

    def own_cause(self, project: str, *parts: str | int) -> Cause:
        """A cause for something the system asks of itself: the same parts give the same command id (design.md §5)."""
        command, why = derived(project, *parts), _BECAUSE.get()
        return Cause(command, digest_of(list(parts)), SYSTEM_ACTOR, project, self.clock(), why.commit, why.trace)

    def deadline(self, seconds: float) -> datetime:
        """The instant that many seconds from now."""
        return self.clock() + timedelta(seconds=seconds)

    async def get(self, cls: type[A], project: str, identifier: str, noun: str = "") -> A:
        """The aggregate as it stands. Raises ``Refused("<noun>.not-found")``."""
        aggregate = (await self.store.load(cls, project, identifier)).aggregate
        if aggregate is None:
            raise not_found(noun or cls.TOPIC, identifier)
        return aggregate

    async def find(self, cls: type[A], project: str, identifier: str) -> A | None:
        """The aggregate as it stands, or None."""
        return (await self.store.load(cls, project, identifier)).aggregate

    async def position(self, cls: type[A], project: str, identifier: str) -> int:
        """The log position of the aggregate's last commit, for ``min_seq``."""
        return (await self.store.load(cls, project, identifier)).seq

    async def change(
        self,
        cls: type[A],
        project: str,
        identifier: str,
        cause: Cause,
        decide: Callable[[A], object],
        reply: Callable[[A], dict[str, Any]] | None = None,
    ) -> Committed[A]:
        """Let an existing aggregate decide. Raises ``Refused`` when it does not exist or does not want to."""
        return await self.store.transact(cls, project, identifier, existing(cls, identifier, decide), cause, reply)

    async def order(self, node: str, order: Order) -> None:
        """Put an order on a node's lane; a repeat of the same order id is absorbed."""
        await lanes.send(self.nc, node, order, shards=self.shards)

    async def ask(self, node: str, order: Order) -> None:
        """The same for an order whose answer somebody waits for here: the node answers one that it had before once more."""
        if (await lanes.send(self.nc, node, order, shards=self.shards)).duplicate:
            await lanes.send(self.nc, node, order, shards=self.shards, again=secrets.token_hex(8))

    def new_order(
        self,
        verb: Verb,
        project: str,
        process: tuple[str, str],
        body: dict[str, Any],
        *,
        key: str,
        attempt: int = 1,
        salt: str = "",
        deadline_s: float | None = None,
    ) -> Order:
        """An order whose id follows from (process, verb, salt, attempt)."""
        now, why = self.clock(), _BECAUSE.get()
        return Order(
            id=derived(project, *process, verb, salt, attempt),
            verb=verb,
            project=project,
            key=key,
            process=process[0],
            process_id=process[1],
            attempt=attempt,
            at=now,
            deadline=None if deadline_s is None else now + timedelta(seconds=deadline_s),
            trace=why.trace,
            cause=why.commit,
            body=body,
        )

    async def set_timer(self, project: str, kind: str, identifier: str, name: str, at: datetime, generation: int) -> None:
        """A durable time-out: at ``at`` the control plane gets (kind, id, name, generation) back."""
        await timers.set_timer(self.nc, project, kind, identifier, name, at, generation)


def existing(cls: type[A], identifier: str, decide: Callable[[A], object]) -> Callable[[A | None], A]:
    """A decision for the store, over an aggregate that must exist."""

    def decision(aggregate: A | None) -> A:
        if aggregate is None:
            raise not_found(cls.TOPIC, identifier)
        decide(aggregate)
        return aggregate

    return decision


def unchanged(aggregate: Aggregate) -> None:
    """The decision of a repeated command: there is nothing to decide, the store answers from the log."""
    del aggregate


Parts = list[Part[Any]]
"""Shares of several aggregates in one atomic commit."""


def part(cls: type[A], project: str, identifier: str, decide: Callable[[A], object]) -> Part[A]:
    """One aggregate's share in an atomic commit of several."""
    return Part(cls, project, identifier, existing(cls, identifier, decide))


def digest_of(body: Any) -> str:
    """What identifies a command's body: 32 hex digits of SHA-256 over its canonical form."""
    return hashlib.sha256(canonical(body)).hexdigest()[:32]
