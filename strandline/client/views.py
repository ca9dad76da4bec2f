"""Views as such: any of them by name, as of any moment, rebuilt, and the digest that two equal ones share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from domain.kernel.errors import not_found
from domain.views.commands import ViewRebuild
from strandline.client.call import Call, given, item_of
from strandline.client.noun import Noun
from strandline.client.replies import ViewRebuilt

DIGEST_S = 60.0
NAMES = (
    "templates",
    "jobs",
    "artifacts",
    "replicas",
    "snapshots",
    "runtime-refs",
    "storage",
    "compat-matrix",
    "sandboxes",
    "endpoints",
    "nodes",
    "rollouts",
    "disks",
    "disk-leases",
    "usage",
)
"""The views of contract.md."""


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256 over a view's canonical dump: equal for equal views, however they came to be. ``generation`` is None for a past one."""

    view: str
    seq: int
    generation: int | None
    sha256: str


class Views(Noun):
    """``view.rebuild`` and every view."""

    async def rebuild(self, view: str, *, until: int | str | None = None, **call: Unpack[Call]) -> ViewRebuilt:
        """Replay the log into a new generation beside the live one, then switch; ``until`` a log position or an RFC 3339 instant."""
        return await self._calls.command(ViewRebuild, ViewRebuilt, call, view=view, until=None if until is None else str(until))

    def list(
        self, view: str, *, where: Mapping[str, Any] | None = None, as_of: int | str | None = None, limit: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The rows of a view, now or as of a log position or an RFC 3339 instant."""
        return self._calls.rows(view, {**(where or {}), "as_of": as_of}, limit=limit)

    async def get(self, view: str, identifier: str, *, as_of: int | str | None = None) -> dict[str, Any]:
        """One row. Raises ``<view>.not-found`` or what the view itself says."""
        found = item_of(await self._calls.query(view, "get", given(id=identifier, as_of=as_of)))
        if found is None:
            raise not_found(view, identifier)
        return found

    async def summary(self, view: str, *, as_of: int | str | None = None) -> dict[str, Any]:
        """The counts that a view offers."""
        return item_of(await self._calls.query(view, "summary", given(as_of=as_of))) or {}

    async def states(self) -> AsyncGenerator[dict[str, Any], None]:
        """Every view there is: how far it has read, and which generation is live."""
        for state in (await self._calls.query("views", "list"))["items"]:
            yield state

    async def digest(self, view: str, *, as_of: int | str | None = None) -> Digest:
        """What identifies a view's content, over all projects."""
        reply = await self._calls.query("views", "digest", given(view=view, as_of=as_of), timeout=DIGEST_S)
        found = item_of(reply) or {}
        return Digest(view, int(found["seq"]), found.get("generation"), str(found["sha256"]))
