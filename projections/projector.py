"""The projector: reads the log once for all views, keeps them, rebuilds them, and answers queries. A process of its own.

What it has is derived: kill it, delete its store, start another beside it; the log makes all of it again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final, Self

import structlog

from bus.connection import Client
from bus.endpoints import Reply, Request, serve_commands, serve_queries
from bus.receipts import Receipts
from bus.tracing import Tracing
from domain.kernel.command import canonical
from domain.kernel.errors import Invalid, Refused
from domain.sandboxes.questions import PLACEMENT_EXPLAIN
from domain.views.commands import ViewRebuild, ViewRebuilt
from projections.live import Live
from projections.log import Log, position_at
from projections.presence import Presence
from projections.queries import Queries
from projections.question import moment
from projections.rebuild import Rebuilder
from projections.store import Store
from projections.used import Used
from projections.view import View

log = structlog.get_logger(__name__)

GROUP: Final = "views"
"""Queue group in which projectors share ``view.rebuild``."""
ELSEWHERE: Final = frozenset({PLACEMENT_EXPLAIN})
"""Queries that the control plane answers."""


class Projector:
    """Everything the process does. ``async with`` it: it serves when the block is entered, whether or not it has caught up."""

    def __init__(self, nc: Client, store: Store, log_: Log, views: Iterable[View], tracing: Tracing | None = None) -> None:
        self._nc = nc
        self._views: Mapping[str, View] = {view.name: view for view in views}
        self._log = log_
        self.store = store
        self.live = Live(store, self._views.values(), log_, tracing)
        self.rebuilder = Rebuilder(store, self._views, log_, self.live)
        self.presence = Presence()
        self.used = Used()
        now = {"nodes": self.presence.of_node, "storage": self.presence.of_storage, "usage": self.used.of_sandbox}
        self.queries = Queries(store, self._views, log_, self, now)
        self._receipts = Receipts(nc)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        missing = self.live.open()
        self._tasks = [asyncio.create_task(self.live.run(), name="live views")]
        if missing:
            self._tasks.append(asyncio.create_task(self._build(missing), name="missing views"))
        await self._stack.enter_async_context(self.presence.listening(self._nc))
        await self._stack.enter_async_context(self.used.listening(self._nc))
        endpoints = await serve_queries(self._nc, self.queries.verbs, self.queries.handle, elsewhere=ELSEWHERE)
        self._stack.push_async_callback(endpoints.close)
        commands = await serve_commands(self._nc, {ViewRebuild.wire_name(): ViewRebuild}, self.rebuild, group=GROUP)
        self._stack.push_async_callback(commands.close)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Answer what was asked, save what was applied, stop."""
        await self._stack.aclose()
        await self.rebuilder.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.live.flush()
        await self.queries.close()
        await self._receipts.flush()

    async def caught_up(self) -> None:
        """Wait until everything that was in the log at the start is in the views."""
        await self.live.caught_up.wait()

    async def reached(self, view: str, seq: int, within: float) -> bool:
        return await self.live.reached(view, seq, within)

    def states(self) -> list[dict[str, Any]]:
        """``views.list``: an item per view."""
        items = []
        for view in self._views.values():
            target = self.live.target(view.name)
            progress = self.rebuilder.progress.get(view.name)
            items.append(
                {
                    "view": view.name,
                    "verbs": list(view.verbs),
                    "schema": view.schema,
                    "state": "building" if target is None else "broken" if target.broken else "live",
                    "generation": None if target is None else target.generation.number,
                    "position": 0 if target is None else target.position,
                    "error": None if target is None else target.broken,
                    "rebuild": None if progress is None else progress.as_dict(),
                }
            )
        return items

    async def rebuild(self, request: Request) -> Reply:
        """``view.rebuild``. The same command id starts one rebuild, and gets the same answer for ever."""
        command = ViewRebuild.parse(request.body)
        digest = hashlib.sha256(canonical([request.name, command.model_dump(exclude={"wait_s"})])).hexdigest()[:32]
        return await self._receipts.once(request, digest, lambda: self._rebuild(request, command))

    async def _rebuild(self, request: Request, command: ViewRebuild) -> Reply:
        number, task = await self.rebuilder.start(command.view, await self._until(command.until))
        settled = False
        if command.wait_s:
            async with request.waiting():
                await asyncio.wait([task], timeout=command.wait_s)
            settled = task.done() and task.result() is not None
        result = ViewRebuilt(generation=number, settled=settled).model_dump()
        return Reply(result, command.view, 0)

    async def _until(self, said: str | None) -> int | None:
        until = moment(said)
        if isinstance(until, datetime):
            return await position_at(self._log, until)
        if until is not None and until > (last := await self._log.last()):
            raise Invalid("the log is shorter", {"until": f"the log ends at {last}"})
        return until

    async def _build(self, missing: list[View]) -> None:
        """Make the views that are new, or whose code has changed, one after the other."""
        for view in missing:
            try:
                _, task = await self.rebuilder.start(view.name)
                await task
            except Refused as refused:
                log.warning("view.not-built", view=view.name, error=repr(refused))
