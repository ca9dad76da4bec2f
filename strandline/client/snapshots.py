"""Snapshots: memory and disk of a sandbox at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Unpack

from domain.templates.commands import SnapshotCreate, SnapshotDelete, SnapshotExport
from strandline.client.call import Call
from strandline.client.items import Lineage, Snapshot
from strandline.client.noun import Noun
from strandline.client.replies import Accepted, SnapshotAccepted, SnapshotStored


class Snapshots(Noun):
    """``snapshot.*`` and the view ``snapshots``."""

    async def create(
        self, sandbox_id: str, *, name: str | None = None, replicate: bool | None = None, **call: Unpack[Call]
    ) -> SnapshotAccepted:
        """Snapshot a sandbox; it goes on running afterwards. ``replicate``: store it at once where every node can fetch it."""
        return await self._calls.command(
            SnapshotCreate, SnapshotAccepted, call, sandbox_id=sandbox_id, name=name, replicate=replicate or None
        )

    async def export(self, snapshot_id: str, **call: Unpack[Call]) -> SnapshotStored:
        """Store it where every node can fetch it. Raises ``snapshot.export-failed``."""
        return await self._calls.command(SnapshotExport, SnapshotStored, call, snapshot_id=snapshot_id)

    async def delete(self, snapshot_id: str, **call: Unpack[Call]) -> Accepted:
        """Hide it at once; its bytes go when nothing refers to it any more."""
        return await self._calls.command(SnapshotDelete, Accepted, call, snapshot_id=snapshot_id)

    async def get(self, snapshot_id: str, *, as_of: int | str | None = None) -> Snapshot:
        """One snapshot. Raises ``snapshot.not-found``."""
        return await self._calls.one("snapshots", Snapshot, "snapshot", snapshot_id, as_of)

    def lineage(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Lineage]:
        """Who came from whom: templates, sandboxes and snapshots, each with its ``parent_id``."""
        return self._calls.each("lineage", Lineage, {**filters, "as_of": as_of}, limit=limit)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Snapshot]:
        """Snapshots whose fields equal the filters."""
        return self._calls.each("snapshots", Snapshot, {**filters, "as_of": as_of}, limit=limit)
