"""The log: read, followed from any position, verified; and the hint "something changed" that waits and watches are made of."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final

from bus.subjects import token
from strandline.client.call import given, item_of
from strandline.client.changes import changes
from strandline.client.cloudevents import events_of
from strandline.client.items import LogEvent, Verification
from strandline.client.noun import Noun
from strandline.client.tail import commits, position

PAGE: Final = 500
_GLOB: Final = re.compile(r"[*?\[]")


class Events(Noun):
    """The log of one project."""

    async def last_seq(self) -> int:
        """The position of the log's end."""
        return int((await self._calls.query("events", "read", {"after": 0, "limit": 1}))["seq"])

    async def read(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        type: str | Sequence[str] = (),  # noqa: A002 - the contract's name
        id: str | None = None,  # noqa: A002 - the contract's name
        limit: int | None = None,
    ) -> AsyncGenerator[LogEvent, None]:
        """Events behind position ``after``, at most up to ``until``, oldest first.

        ``type``: event types (``sandbox.started``), patterns (``*.failed``) or kinds of things (``sandbox``); any of them matches.
        """
        wanted = _patterns(type)
        exact = type if isinstance(type, str) and type and not _GLOB.search(type) else None
        left, behind = limit, after
        while left is None or left > 0:
            page = PAGE if left is None or wanted else min(PAGE, left)
            reply = await self._calls.query("events", "read", given(after=behind, until=until, type=exact, id=id, limit=page))
            for item in reply.get("items", ()):
                event = LogEvent.model_validate(item)
                if _matches(event, wanted):
                    yield event
                    left = None if left is None else left - 1
                    if left == 0:
                        return
            following = reply.get("next")
            if following is None:
                return
            behind = int(following)

    async def follow(
        self,
        *,
        after: int | None = None,
        type: str | Sequence[str] = (),  # noqa: A002 - the contract's name
        id: str | None = None,  # noqa: A002 - the contract's name
    ) -> AsyncGenerator[LogEvent, None]:
        """Events as they happen, behind ``after`` or from now on, for ever, without a gap."""
        wanted = _patterns(type)
        start = await position(self._calls.nc) if after is None else after
        subject = f"strand.evt.{self._calls.project}.*.{token(id)}" if id else f"strand.evt.{self._calls.project}.>"
        async with contextlib.aclosing(commits(self._calls.nc, start, [subject])) as batches:
            async for batch in batches:
                for commit in batch:
                    for event in events_of(commit):
                        if _matches(event, wanted):
                            yield event

    def changes(self, *kinds: str, id: str | None = None) -> AsyncGenerator[int, None]:  # noqa: A002 - the contract's name
        """Log positions: one now, and one after every change of an aggregate of those kinds. Also a tick now and then."""
        return changes(self._calls, *kinds, id=id)

    async def position_at(self, at: datetime) -> int:
        """The position behind which events are not older than ``at``: where to start reading "since then"."""
        low, high = 0, await self.last_seq()
        while low < high:
            middle = (low + high) // 2
            event = await self._first_after(middle)
            if event is None or event.time >= at:
                high = middle
            else:
                low = event.seq
        return low

    async def _first_after(self, position: int) -> LogEvent | None:
        reply = await self._calls.query("events", "read", {"after": position, "limit": 1})
        items: list[Any] = reply.get("items", [])
        return LogEvent.model_validate(items[0]) if items else None

    async def verify(self, *, id: str | None = None, timeout: float = 300) -> Verification:  # noqa: A002 - the contract's name
        """Let the control plane check hashes, links and versions of the log, or of one aggregate; what it found."""
        reply = await self._calls.query("events", "verify", given(id=id), timeout)
        return Verification.model_validate({**(item_of(reply) or {}), "seq": reply.get("seq", 0)})


def _patterns(type: str | Sequence[str]) -> list[str]:  # noqa: A002 - the contract's name
    names = [type] if isinstance(type, str) else list(type)
    return [name if "." in name or _GLOB.search(name) else f"{name}.*" for name in names if name]


def _matches(event: LogEvent, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(event.type, pattern) for pattern in patterns)
