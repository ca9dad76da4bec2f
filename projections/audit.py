"""``events.read`` and ``events.verify``: the log itself, event by event. Who did what, commit by commit, is ``projections/trail.py``."""

from __future__ import annotations

from typing import Any, Final

import orjson

from bus import subjects
from bus.endpoints import Reply
from projections.engine import Message
from projections.log import Log
from projections.question import DEFAULT_LIMIT, MAX_LIMIT, invalid, number, read, text

SCAN: Final = 20_000
"""Commits that one request looks through. When few of them match, a page is short, and ``next`` goes on behind them."""
PAGE: Final = 1000


async def read_events(log: Log, project: str, body: bytes) -> Reply:
    """Events of a project behind ``after``, oldest first, at most ``limit`` (a commit is never cut: then there are a few more).

    ``type``: an event type (``sandbox.started``) or an aggregate's (``sandbox``). ``next`` is the position to go on behind, or None.
    """
    asked = read(body)
    asked.pop("min_seq", None)  # the log itself is never behind
    after = number(asked, "after", 0, 0, 1 << 62)
    until = number(asked, "until", 1 << 62, 0, 1 << 62)
    limit = number(asked, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    wanted, identifier = text(asked, "type", ""), text(asked, "id", "")
    if asked:
        raise invalid(**{str(name)[:64]: "is not a field of this query" for name in asked})
    subject = _subject(project, wanted, identifier)
    last = await log.last()
    items: list[dict[str, Any]] = []
    seq, scanned = after + 1, 0
    while True:
        page = await log.page(subject, seq, min(PAGE, max(limit, 16)))
        for position, data in page.messages:
            if position > until:
                return _page(last, items, None)
            found = events_of((position, data), wanted)
            if items and len(items) + len(found) > limit:
                return _page(last, items, seq - 1)
            items += found
            seq, scanned = position + 1, scanned + 1
            if len(items) >= limit:
                more = page.next is not None or position != page.messages[-1][0]
                return _page(last, items, position if more and position < until else None)
        if page.next is None:
            return _page(last, items, None)
        if scanned >= SCAN:
            return _page(last, items, seq - 1)
        seq = page.next


def _subject(project: str, wanted: str, identifier: str) -> str:
    try:
        kind = subjects.token(wanted.split(".", 1)[0]) if wanted else "*"
        return f"strand.evt.{subjects.token(project)}.{kind}.{subjects.token(identifier) if identifier else '*'}"
    except ValueError:
        raise invalid(type="and id are names") from None


def events_of(message: Message, wanted: str = "") -> list[dict[str, Any]]:
    """A commit's events, each with what the commit says about all of them."""
    seq, data = message
    body = orjson.loads(data)
    return [
        {
            "seq": seq,
            "commit": body["commit"],
            "command": body["command"],
            "cause": body.get("cause"),
            "actor": body["actor"],
            "project": body["project"],
            "type": event["type"],
            "id": body["id"],
            "version": event["version"],
            "time": body["time"],
            "data": event["data"],
        }
        for event in body["events"]
        if wanted in {"", event["type"], body["type"]}
    ]


def _page(last: int, items: list[dict[str, Any]], following: int | None) -> Reply:
    return Reply({"items": items, "next": following}, seq=last)


async def verify_events(log: Log, project: str, body: bytes) -> Reply:
    """Check hashes, links and versions of the project's commits, or of the aggregate ``id`` alone; in project ``system``, of everything.

    The item says ``intact``, and what is wrong where in ``faults``.
    """
    asked = read(body)
    asked.pop("min_seq", None)
    identifier = text(asked, "id", "")
    if asked:
        raise invalid(**{str(name)[:64]: "is not a field of this query" for name in asked})
    _subject(project, "", identifier)
    result = await log.verify(project, identifier or None)
    return Reply({"items": [result], "next": None}, seq=await log.last())
