"""The roots of every driver of a node: trees for those that run programs in the host's kernel, disks for those that bring their own."""

from __future__ import annotations

from pathlib import Path

from agents.drivers.driver import RuntimeFault
from agents.storage.base import Fill, Inventory
from agents.storage.copies import CopyRoots
from agents.storage.disks import DiskRoots, Take
from agents.storage.overlay import OverlayRoots
from agents.storage.roots import choose_roots


class AllRoots:
    """A sandbox's root is of the kind it was made as; nobody has to remember which."""

    def __init__(self, trees: OverlayRoots | CopyRoots, disks: DiskRoots) -> None:
        self._trees = trees
        self._disks = disks
        self.kind = trees.kind

    async def prepare(self, artifact_id: str, ext4: Path, *, disk: bool = False) -> None:
        await (self._disks if disk else self._trees).prepare(artifact_id, ext4)

    async def create(self, sandbox_id: str, artifact_id: str, snapshot_id: str | None = None, *, disk: bool = False, ids: int = 0) -> Path:
        """``ids`` is for trees: who owns what in a disk is its guest's affair."""
        if disk:
            return await self._disks.create(sandbox_id, artifact_id, snapshot_id)
        return await self._trees.create(sandbox_id, artifact_id, snapshot_id, ids=ids)

    async def give(self, held: str, sandbox_id: str) -> Path:
        """See ``Storage``; for trees."""
        return await self._trees.give(held, sandbox_id)

    def ids(self, sandbox_id: str) -> int:
        """The host's number of user 0 in a sandbox's root."""
        return 0 if self._disks.has(sandbox_id) else self._trees.ids(sandbox_id)

    async def snapshot(self, sandbox_id: str, snapshot_id: str, take: Take | None = None) -> int:
        """Bytes. ``take``: the driver's, for a disk. Raises ``root.needs-driver`` for one without it."""
        if not self._disks.has(sandbox_id):
            return await self._trees.snapshot(sandbox_id, snapshot_id)
        if take is None:
            raise RuntimeFault("root.needs-driver", f"the disk of {sandbox_id} cannot be frozen without its machine")
        return await self._disks.snapshot(sandbox_id, snapshot_id, take)

    async def flatten(self, sandbox_id: str) -> Path:
        """The disk that a root is, as one raw file. Raises as ``DiskRoots``."""
        return await self._disks.flatten(sandbox_id)

    def memory(self, snapshot_id: str) -> Path | None:
        """The memory in a snapshot; None when it holds a disk alone."""
        return self._disks.memory(snapshot_id)

    def layers(self, snapshot_id: str) -> tuple[str, str, list[Path]]:
        """See ``Storage``."""
        return (self._trees if self._disks.memory(snapshot_id) is None else self._disks).layers(snapshot_id)

    async def receive(self, snapshot_id: str, artifact_id: str, kind: str, count: int, fill: Fill) -> None:
        await (self._disks if kind == self._disks.kind else self._trees).receive(snapshot_id, artifact_id, kind, count, fill)

    async def rollback(self, sandbox_id: str, snapshot_id: str) -> Path:
        return await (self._disks if self._disks.has(sandbox_id) else self._trees).rollback(sandbox_id, snapshot_id)

    async def remove(self, sandbox_id: str) -> None:
        await self._disks.remove(sandbox_id)
        await self._trees.remove(sandbox_id)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        await self._disks.remove_snapshot(snapshot_id)
        await self._trees.remove_snapshot(snapshot_id)

    async def forget(self, artifact_id: str) -> None:
        await self._disks.forget(artifact_id)
        await self._trees.forget(artifact_id)

    async def list(self) -> Inventory:
        trees, disks = await self._trees.list(), await self._disks.list()
        return Inventory(trees.roots | disks.roots, trees.snapshots | disks.snapshots, trees.artifacts | disks.artifacts)


def all_roots(directory: Path) -> AllRoots:
    """Both kinds, below one directory of the node's."""
    return AllRoots(choose_roots(directory), DiskRoots(directory / "disks"))
