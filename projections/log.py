"""The log as the projector reads it: in order and in batches from any position, by position, and by instant.

:class:`Log` is the port; ``projections/buslog.py`` is JetStream behind it, and tests have a list.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson

from projections.engine import Message


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive commits. ``more``: others are waiting already, so that it is worth applying them together."""

    messages: Sequence[Message]
    more: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Commits of one subject. ``next``: where the next page begins, None at the end of the log."""

    messages: Sequence[Message]
    next: int | None


class Log(Protocol):
    """Reads of the event stream. Raises ``Refused("bus.unavailable")`` where it asks and nobody answers; ``batches`` waits instead."""

    def batches(self, after: int) -> AsyncGenerator[Batch, None]:
        """Everything behind ``after``, for ever. To be closed by ``aclosing``."""
        ...

    def hurry(self) -> None:
        """Somebody waits for what was stored last: ``batches`` may otherwise wait a moment for more."""
        ...

    async def identity(self) -> str:
        """Which log this is: another one after the stream was made anew, when positions mean other things."""
        ...

    async def last(self) -> int:
        """The position of the log's end."""
        ...

    async def page(self, subject: str, seq: int, count: int) -> Page:
        """At most ``count`` commits on ``subject`` (wildcards work) from ``seq`` on."""
        ...

    async def verify(self, project: str, identifier: str | None) -> dict[str, Any]:
        """What ``events.verify`` answers: hashes, links and versions of a project's commits, or of one aggregate's."""
        ...


async def position_at(log: Log, instant: datetime) -> int:
    """The position of the last commit that was made at or before ``instant``, by its own time; 0 if there is none.

    A binary search: commit times grow with positions, but for the few milliseconds in which handlers overtake each other.
    """
    low, high = 0, await log.last()
    while low < high:
        middle = (low + high + 1) // 2
        page = await log.page("strand.evt.>", middle, 1)
        if not page.messages:
            high = middle - 1
            continue
        seq, data = page.messages[0]
        if datetime.fromisoformat(orjson.loads(data)["time"]) <= instant:
            low = max(seq, middle)
        else:
            high = middle - 1
    return low
