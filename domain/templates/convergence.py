"""Convergence: which replicas a node should be given, and how many at a time. Pure.

A template that is READY or PARTIALLY_READY is wanted on every healthy node in its scope that is open for scheduling; nobody takes away what
is there. The reference has nothing of the kind, and its users ask for it (reference/cubesandbox.md §4.7, §12 "Fix").

``max_replicas`` of its creation bounds how many nodes it is on. ``min_replicas`` is how many nodes that are there should have it: below
that, it comes before everything else, and replicas on nodes that are away do not count against the maximum. Otherwise the greater
``priority`` comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from domain.kernel.aggregate import Record

AT_ONCE: Final = 2
"""Replicas that one node makes at the same time, whoever asked for them, before convergence gives it another."""
RETRY: Final = timedelta(minutes=10)
RETRY_AT_MOST: Final = timedelta(days=1)


class Want(Record):
    """A template that a node lacks. ``there``: its replicas, ready or being made, where nobody was evicted; ``near``: on healthy nodes."""

    template_id: str
    project: str
    priority: int = 0
    minimum: int = 0
    maximum: int | None = None
    there: int = 0
    near: int = 0

    @property
    def short(self) -> bool:
        """Are there fewer than there should be?"""
        return self.near < self.minimum

    @property
    def allowed(self) -> bool:
        """May there be one more?"""
        return self.short or self.maximum is None or self.there < self.maximum


def due(wants: Iterable[Want], making: int) -> list[Want]:
    """What the node gets now, the most urgent first. ``making``: how many replicas it is making already."""
    allowed = sorted((w for w in wants if w.allowed), key=lambda w: (not w.short, -w.priority, w.project, w.template_id))
    return allowed[: max(0, AT_ONCE - making)]


def retry_after(failures: int) -> timedelta:
    """How long a node's failed replica is left alone: twice as long after each failure in a row, at most a day."""
    doublings = min(max(failures, 1) - 1, 16)
    return min(RETRY * (1 << doublings), RETRY_AT_MOST)


def may_retry(failed_at: datetime, failures: int, online_since: datetime | None, now: datetime) -> bool:
    """At once on a node that has come back since, else after :func:`retry_after`."""
    return (online_since is not None and online_since > failed_at) or now >= failed_at + retry_after(failures)
