"""Disks: what outlives the sandboxes that it is mounted in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Unpack

from domain.disks import commands as c
from strandline.client.call import Call
from strandline.client.items import Disk, DiskLease
from strandline.client.noun import Noun
from strandline.client.replies import DiskAccepted, DiskReleased


class Disks(Noun):
    """``disk.*`` and the views ``disks`` and ``disk-leases``. A disk is known by its name."""

    async def create(
        self,
        name: str,
        size_mb: int,
        *,
        filesystem: Literal["ext4", "xfs", "btrfs"] | None = None,
        node: str | None = None,
        source: tuple[str, str] | None = None,
        **call: Unpack[Call],
    ) -> DiskAccepted:
        """Make a disk. ``source``: a disk and one of its snapshots."""
        of = None if source is None else {"disk": source[0], "snapshot": source[1]}
        return await self._calls.command(
            c.DiskCreate, DiskAccepted, call, name=name, size_mb=size_mb, filesystem=filesystem, node=node, source=of
        )

    async def grow(self, name: str, size_mb: int, **call: Unpack[Call]) -> DiskAccepted:
        """Make it bigger, also while a sandbox uses it."""
        return await self._calls.command(c.DiskGrow, DiskAccepted, call, name=name, size_mb=size_mb)

    async def snapshot(self, name: str, snapshot: str, **call: Unpack[Call]) -> DiskAccepted:
        """Keep it as it is now, under a name."""
        return await self._calls.command(c.DiskSnapshot, DiskAccepted, call, name=name, snapshot=snapshot)

    async def delete_snapshot(self, name: str, snapshot: str, **call: Unpack[Call]) -> DiskAccepted:
        """Let one of its snapshots go."""
        return await self._calls.command(c.DiskDeleteSnapshot, DiskAccepted, call, name=name, snapshot=snapshot)

    async def delete(self, name: str, **call: Unpack[Call]) -> DiskAccepted:
        """Remove it with everything on it. Raises ``disk.in-use``."""
        return await self._calls.command(c.DiskDelete, DiskAccepted, call, name=name)

    async def release(self, name: str, *, force: bool | None = None, **call: Unpack[Call]) -> DiskReleased:
        """End its lease. Raises ``disk.busy`` while its sandbox is wanted, unless ``force``: then that is deleted."""
        return await self._calls.command(c.DiskRelease, DiskReleased, call, name=name, force=force)

    async def get(self, name: str, *, as_of: int | str | None = None) -> Disk:
        """One disk. Raises ``disk.not-found``."""
        return await self._calls.one("disks", Disk, "disk", name, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Disk]:
        """Disks whose fields equal the filters."""
        return self._calls.each("disks", Disk, {**filters, "as_of": as_of}, limit=limit)

    def leases(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[DiskLease]:
        """Who has, waits for, or had which disk."""
        return self._calls.each("disk-leases", DiskLease, {**filters, "as_of": as_of}, limit=limit)
