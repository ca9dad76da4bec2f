"""``audit.list`` and ``audit.get``: who did what to what, and when. A row per commit, answered from the log (docs/adr/0014).

It is asked like a view: filters, ``limit``, ``cursor``, ``as_of``; its key is the position in the log, so a list is in the log's order. It
is never behind, and there is nothing to rebuild.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from bus import subjects
from bus.endpoints import Reply
from domain.kernel.errors import not_found
from projections.engine import Message
from projections.log import Log
from projections.question import Question, encode_cursor, invalid

FIELDS: Final[Mapping[str, Any]] = {
    "seq": 0,
    "time": "",
    "actor": "",
    "command": "",
    "cause": None,
    "project": "",
    "type": "",
    "id": "",
    "commit": "",
    "events": [],
}
"""The fields of a row with a value of their type. ``events`` are the types of the events, in their order."""
FILTERS: Final = (*(name for name, value in FIELDS.items() if not isinstance(value, list)), "event")
"""What a list can be narrowed by; ``event`` is one of the types in ``events``."""
SCAN: Final = 20_000
"""Commits that one request looks through. When few of them match, a page is short, and ``next`` goes on behind them."""
PAGE: Final = 1000


async def list_commits(log: Log, project: str, question: Question, end: int) -> Reply:
    """The rows of a project's commits up to position ``end`` that match, oldest first. ``seq`` of the reply is ``end``."""
    where = dict(question.where)
    subject = _subject(project, where)
    items: list[dict[str, Any]] = []
    seq, scanned = _after(question) + 1, 0
    while seq <= end and scanned < SCAN:
        page = await log.page(subject, seq, PAGE)
        for message in page.messages:
            if message[0] > end:
                return _found(items, end)
            seq, scanned = message[0] + 1, scanned + 1
            row = row_of(message)
            if row["project"] == project and _matches(row, where):
                items.append(row)
                if len(items) == question.limit:
                    return _found(items, end, seq - 1)
        if page.next is None:
            return _found(items, end)
        seq = page.next
    return _found(items, end, seq - 1 if seq <= end else None)


async def get_commit(log: Log, project: str, question: Question, end: int) -> Reply:
    """The row of the commit at one position. Raises ``commit.not-found`` where the project has none, or had none yet."""
    if question.id.isdecimal() and 0 < int(question.id) <= end:
        page = await log.page(_subject(project, {}), int(question.id), 1)
        rows = [row for row in map(row_of, page.messages) if row["seq"] == int(question.id) and row["project"] == project]
        if rows:
            return _found(rows, end)
    raise not_found("commit", question.id)


def row_of(message: Message) -> dict[str, Any]:
    """A commit without what it says about its aggregate."""
    seq, data = message
    body = orjson.loads(data)
    said = {name: body.get(name) for name in FIELDS if name not in {"seq", "events"}}
    return {"seq": seq, **said, "events": [event["type"] for event in body["events"]]}


def _subject(project: str, where: Mapping[str, Any]) -> str:
    """What can be told from the subject need not be read. Raises ``query.invalid``."""
    tokens = {name: where.get(name) for name in ("type", "id")}
    try:
        kind, identifier = (subjects.token(value) if isinstance(value, str) else "*" for value in tokens.values())
        return f"strand.evt.{subjects.token(project)}.{kind}.{identifier}"
    except ValueError:
        raise invalid(type="and id are names") from None


def _after(question: Question) -> int:
    if question.after and not question.after.isdecimal():
        raise invalid(cursor="is not a cursor of this query")
    return int(question.after or 0)


def _matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(value in row["events"] if name == "event" else row[name] == value for name, value in where.items())


def _found(items: list[dict[str, Any]], end: int, behind: int | None = None) -> Reply:
    """``behind``: the position to go on behind, when there may be more."""
    return Reply({"items": items, "next": None if behind is None else encode_cursor(str(behind))}, seq=end)
