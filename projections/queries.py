"""Queries: views, the log and the views' own state, asked over request/reply (design.md §3, contract.md "Queries").

``min_seq`` waits until the view has read so far, at most ``BEHIND_S``; ``as_of`` asks the view as it was. Replies carry the position that
the answer is true for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from bus.endpoints import Reply, Request
from domain.kernel.errors import Refused
from domain.templates.alias import RESERVED_PREFIXES
from projections import audit, trail
from projections.export import digest
from projections.log import Log, position_at
from projections.moments import Moments
from projections.question import AsOf, Question, encode_cursor, invalid, parse
from projections.store import NoSuchView, Reader, Store
from projections.view import View
from projections.views.templates import resolve

T = TypeVar("T")

Present: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Adds to an item of a live view what is known at this moment and never becomes an event."""

BEHIND_S: Final = 5.0
"""How long a query waits for its view to read up to ``min_seq``."""
BY_TEMPLATE: Final = "template_id"
"""The field in which, and the key for which, an alias will do."""
INLINE: Final = frozenset({"get"})
"""Verbs so quick on a local store that handing them to a thread would take longer."""


class Following(Protocol):
    """How far the live views are, from whoever moves them."""

    async def reached(self, view: str, seq: int, within: float) -> bool:
        """Wait until the view has read up to ``seq``; false after ``within`` seconds."""
        ...

    def states(self) -> list[dict[str, Any]]:
        """What ``views.list`` answers, an item per view."""
        ...


class Queries:
    """Answers every query. ``handle`` is what the bus calls."""

    def __init__(
        self, store: Store, views: Mapping[str, View], log: Log, following: Following, present: Mapping[str, Present] | None = None
    ) -> None:
        self._store = store
        self._views = views
        self._log = log
        self._following = following
        self._present = present or {}
        self._moments = Moments(log, views)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="query")

    @property
    def verbs(self) -> dict[str, Sequence[str]]:
        """Everything that can be asked."""
        return {
            **{view.name: view.verbs for view in self._views.values()},
            "events": ("read", "verify"),
            "audit": ("list", "get"),
            "views": ("list", "digest"),
        }

    async def handle(self, request: Request) -> Reply:
        """Answer one query. Raises ``Refused``."""
        name, verb = request.name.split(".")
        match name:
            case "events" if verb == "read":
                return await audit.read_events(self._log, request.project, request.body)
            case "events":
                return await audit.verify_events(self._log, request.project, request.body)
            case "audit":
                return await self._audit(verb, request)
            case "views" if verb == "list":
                states = self._following.states()
                return _found(min((s["position"] for s in states), default=0), states)
            case "views":
                return await self._digests(request)
            case _:
                return await self._ask(self._views[name], verb, request)

    async def _ask(self, view: View, verb: str, request: Request) -> Reply:
        own = view.asks.get(verb)
        question = parse(request.body, verb, own.asked if own else [n for n, v in view.fields.items() if not isinstance(v, dict | list)])
        await self._behind(view, question)
        store, seq = await self._when(view, question.as_of)
        names = await self._template_names(view, question, request.project)
        answer = partial(_own, verb) if own else _VERBS[verb]
        present = self._present.get(view.name) if seq is None and verb in {"list", "get"} else None

        def read() -> Reply:
            with store.read(view.name) as reader:
                found, following = answer(view, reader, request.project, question, names)
                if present is not None:
                    found = [present(item) for item in found]
                return _found(reader.position if seq is None else seq, found, following)

        if verb in INLINE and not store.remote:
            with contextlib.suppress(NoSuchView):
                return read()
        return await self._in_thread(read)

    async def _audit(self, verb: str, request: Request) -> Reply:
        question = parse(request.body, verb, trail.FILTERS)
        end = await self._log.last() if question.as_of is None else await self._position(question.as_of)
        answer = trail.list_commits if verb == "list" else trail.get_commit
        return await answer(self._log, request.project, question, end)

    async def _behind(self, view: View, question: Question) -> None:
        if question.min_seq and not await self._following.reached(view.name, question.min_seq, BEHIND_S):
            raise Refused("view.behind", f"{view.name} has not read up to {question.min_seq} yet", retryable=True)

    async def _when(self, view: View, as_of: AsOf | None) -> tuple[Store, int | None]:
        """Where to read, and the position to state; None: the live view says it."""
        if as_of is None:
            return self._store, None
        seq = await self._position(as_of)
        return await self._moments.at(view.name, seq), seq

    async def _position(self, as_of: AsOf) -> int:
        if isinstance(as_of, datetime):
            return await position_at(self._log, as_of)
        last = await self._log.last()
        if as_of > last:
            raise invalid(as_of=f"the log ends at {last}")
        return as_of

    async def _template_names(self, view: View, question: Question, project: str) -> dict[str, str]:
        """What the alias in the question stands for; empty when it has none."""
        name = question.where.get(BY_TEMPLATE, question.id if view.key == BY_TEMPLATE else None)
        if not isinstance(name, str) or name.startswith(RESERVED_PREFIXES):
            return {}
        store, _ = await self._when(self._views["templates"], question.as_of)

        def read() -> str:
            with store.read("templates") as reader:
                return resolve(reader, project, name)

        return {name: await self._in_thread(read)}

    async def _digests(self, request: Request) -> Reply:
        """SHA-256 of the canonical dump of the views that are asked for, over all projects."""
        question = parse(request.body, "list", ["view"])
        wanted = question.where.get("view")
        if wanted is not None and wanted not in self._views:
            raise invalid(view="is not a view")
        items = []
        for view in self._views.values() if wanted is None else [self._views[wanted]]:
            await self._behind(view, question)
            store, seq = await self._when(view, question.as_of)

            def read(view: View = view, store: Store = store, seq: int | None = seq) -> dict[str, Any]:
                with store.read(view.name) as reader:
                    generation = reader.number if seq is None else None
                    seq = reader.position if seq is None else seq
                    return {"view": view.name, "generation": generation, "seq": seq, "sha256": digest(reader)}

            items.append(await self._in_thread(read))
        return _found(min(item["seq"] for item in items), items)

    async def _in_thread(self, read: Callable[[], T]) -> T:
        """Read in a thread. A view that was replaced, or a connection that broke, between two statements: once more."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, read)
        except (NoSuchView, ConnectionError):
            pass
        try:
            return await loop.run_in_executor(self._threads, read)
        except NoSuchView as error:
            raise Refused("view.building", f"{error} is not built yet", retryable=True) from error
        except ConnectionError as error:
            raise Refused("view.unavailable", "the view store does not answer", retryable=True) from error

    async def close(self) -> None:
        """Stop replays and threads."""
        await self._moments.close()
        self._threads.shutdown(wait=True)


Answer = tuple[list[dict[str, Any]], str | None]


def _list(view: View, reader: Reader, project: str, question: Question, names: Mapping[str, str]) -> Answer:
    where = dict(question.where)
    if where.get(BY_TEMPLATE) in names:
        where[BY_TEMPLATE] = names[where[BY_TEMPLATE]]
    page = view.list(reader, project, where, question.after, question.limit)
    return [item for _, item in page.items], encode_cursor(page.items[-1][0]) if page.more and page.items else None


def _get(view: View, reader: Reader, project: str, question: Question, names: Mapping[str, str]) -> Answer:
    return [view.get(reader, project, names.get(question.id, question.id))], None


def _summary(view: View, reader: Reader, project: str, _question: Question, _names: Mapping[str, str]) -> Answer:
    return [view.summary(reader, project)], None


def _own(verb: str, view: View, reader: Reader, project: str, question: Question, _names: Mapping[str, str]) -> Answer:
    page = view.asks[verb].answer(reader, project, question.where, question.after, question.limit)
    return [item for _, item in page.items], encode_cursor(page.items[-1][0]) if page.more and page.items else None


_VERBS: Final = {"list": _list, "get": _get, "summary": _summary}


def _found(seq: int, items: list[dict[str, Any]], following: str | None = None) -> Reply:
    return Reply({"items": items, "next": following}, seq=seq)
