"""How a call reaches the control plane: bodies made from keyword arguments, checked by the command's own record, sent, answered.

A session remembers the highest log position that it was told of, and asks every later query to have read up to it: what you did, you see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypedDict, TypeVar

import orjson

from bus.client import Caller
from bus.connection import Client
from domain.kernel.command import Command
from domain.kernel.errors import Refused, not_found
from strandline.client.items import Item
from strandline.client.replies import Accepted

R = TypeVar("R", bound=Accepted)
I = TypeVar("I", bound=Item)  # noqa: E741 - an item

COMMAND_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 10.0
PAGE = 1000
"""Items per request; the contract's maximum."""


class Call(TypedDict, total=False):
    """What every mutating call takes besides its own arguments.

    ``wait_s``: how long to wait for what the command starts to settle (0 … 600). ``idempotency_key``: the command id; the same key never
    acts twice and gives the same answer. ``timeout``: seconds for the answer itself, on top of ``wait_s``.
    """

    wait_s: float
    idempotency_key: str
    timeout: float


class Calls:
    """One connection, one project. The nouns share it."""

    def __init__(self, nc: Client, project: str, *, actor: str | None = None) -> None:
        self.nc = nc
        self.project = project
        self.seen = 0
        self._caller = Caller(nc, actor=actor)

    async def command(self, cls: type[Command], reply: type[R], call: Call, **fields: Any) -> R:
        """Give a command. Arguments that are None are not sent. Raises ``Refused``, as ``command.invalid`` before anything is sent."""
        body = {name: value for name, value in fields.items() if value is not None}
        if call.get("wait_s"):
            body["wait_s"] = call["wait_s"]
        cls.parse(orjson.dumps(body, default=list))
        answer = await self.raw_command(cls.wire_name(), body, call)
        return reply.read(answer)

    async def raw_command(self, name: str, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """Send ``noun.verb`` with that body, unchecked, and return the whole reply."""
        timeout = call.get("timeout", COMMAND_TIMEOUT_S)
        answer = await self._caller.command(self.project, name, body, call.get("idempotency_key"), timeout)
        self.note(answer)
        return answer

    async def query(self, view: str, verb: str, body: Mapping[str, Any] | None = None, timeout: float = QUERY_TIMEOUT_S) -> dict[str, Any]:
        """Ask a view and return the whole reply."""
        asked = dict(body or {})
        if self.seen and "as_of" not in asked:
            asked.setdefault("min_seq", self.seen)
        return await self._caller.query(self.project, view, verb, asked, timeout)

    async def one(self, view: str, item: type[I], noun: str, identifier: str, as_of: int | str | None = None) -> I:
        """One item by its id. Raises ``<noun>.not-found``."""
        reply = await self.query(view, "get", given(id=identifier, as_of=as_of))
        found = item_of(reply)
        if found is None:
            raise not_found(noun, identifier)
        return item.model_validate(found)

    async def each(
        self, view: str, item: type[I], filters: Mapping[str, Any], *, page: int = PAGE, limit: int | None = None, verb: str = "list"
    ) -> AsyncIterator[I]:
        """Every item that the filters leave, page by page, at most ``limit``."""
        async for found in self.rows(view, filters, page=page, limit=limit, verb=verb):
            yield item.model_validate(found)

    async def rows(
        self, view: str, filters: Mapping[str, Any], *, page: int = PAGE, limit: int | None = None, verb: str = "list"
    ) -> AsyncIterator[dict[str, Any]]:
        """The same, as the plain objects of the replies."""
        left, cursor = limit, None
        where = {name: value for name, value in filters.items() if name != "as_of" or value is not None}
        while left is None or left > 0:
            size = page if left is None else min(page, left)
            reply = await self.query(view, verb, {**where, **given(limit=size, cursor=cursor)})
            for found in reply.get("items", ()):
                yield found
            cursor = reply.get("next")
            if cursor is None:
                return
            left = None if left is None else left - size

    def note(self, answer: Mapping[str, Any]) -> None:
        """Remember how far the log had come, for read-your-writes."""
        self.seen = max(self.seen, int(answer.get("seq") or 0))


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value. A filter may well be null; what was not said is not sent."""
    return {name: value for name, value in fields.items() if value is not None}


def item_of(reply: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one item of a ``get`` or ``summary`` reply: ``item``, the only one of ``items``, or the reply's own further fields."""
    if "item" in reply:
        found = reply["item"]
    elif "items" in reply:
        found = next(iter(reply["items"]), None)
    else:
        found = {name: value for name, value in reply.items() if name not in {"ok", "seq", "next"}}
    return None if found is None else dict(found)


def timed_out(what: str, seconds: float, **details: Any) -> Refused:
    """The refusal of a wait that took too long. Nothing is undone; asking again is safe."""
    return Refused("wait.timeout", f"{what} has not settled after {seconds:g} s", retryable=True, details=details)
