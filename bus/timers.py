"""Durable time-outs: the bus itself sends ``strand.due.…`` when a ``strand.timer.…`` has come (reference/jetstream-eventstore.md §1.6).

One timer per (project, kind, id, name); setting it again replaces it. The bus may be late by a quarter of a second, or by as long as it was
away, and a cancelled timer may just have fired: so each carries a generation, and whoever is told ignores one that is not current.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.reader import Delivery, Item, Reader, Work, ensure_consumer
from bus.requests import call, store

DUE_WORK: Final = Work(limit=512, parallel=32, tries=10)
DURABLE: Final = "due"
KEPT: Final = "72h"
"""How long a due time-out waits for a control plane."""


@dataclass(frozen=True, slots=True)
class Due:
    """A time-out that has come. ``at`` is when it was meant to."""

    project: str
    kind: str
    id: str
    name: str
    generation: int
    at: datetime
    body: Mapping[str, Any] = field(default_factory=dict)


async def set_timer(
    nc: Client,
    project: str,
    kind: str,
    identifier: str,
    name: str,
    at: datetime,
    generation: int,
    body: Mapping[str, Any] | None = None,
) -> None:
    """Have (kind, id, name, generation) said at ``at``; an instant that has passed is said at once. Raises ``Refused``."""
    instant = at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    headers = {
        "Nats-Schedule": f"@at {instant}",
        "Nats-Schedule-Target": subjects.due(project, kind, identifier, name),
        "Nats-Schedule-TTL": KEPT,
    }
    data = orjson.dumps({"generation": generation, "at": instant, "body": dict(body or {})})
    await store(nc, subjects.timer(project, kind, identifier, name), data, headers=headers)


async def cancel_timer(nc: Client, project: str, kind: str, identifier: str, name: str) -> None:
    """Forget a timer; none being set is fine."""
    await call(nc, f"STREAM.PURGE.{subjects.TIMERS}", {"filter": subjects.timer(project, kind, identifier, name)})


class DueReader(Reader[Due]):
    """The control plane's end: ``handle(due)`` for each time-out, those of one aggregate one after the other."""

    def __init__(self, nc: Client, handle: Callable[[Due], Awaitable[None]], *, work: Work = DUE_WORK) -> None:
        async def attach(fresh: bool) -> None:
            await ensure_consumer(nc, subjects.TIMERS, DURABLE, subjects.ALL_DUE, work, memory=False, fresh=fresh)

        async def accept(due: Due, _: Delivery[Due]) -> None:
            await handle(due)

        super().__init__(nc, subjects.TIMERS, DURABLE, attach, decode_due, accept, work)


def decode_due(message: Msg) -> Item[Due]:
    """The time-out in a message. Raises ``ValueError``."""
    project, kind, identifier, name = message.subject.split(".")[2:]
    try:
        said = orjson.loads(message.data)
        due = Due(project, kind, identifier, name, int(said["generation"]), datetime.fromisoformat(said["at"]), said["body"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a time-out: {error!r}") from None
    return Item(due, f"{project}/{kind}/{identifier}", f"{message.subject} #{due.generation}")
