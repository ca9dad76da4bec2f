"""Roots as copies of trees: no mounts, no root, any file system. Where it can share blocks (reflink), ``cp`` makes it do so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agents.storage import trees
from agents.storage.base import Storage
from agents.storage.unpack import unpack


class CopyRoots(Storage):
    kind = "copies"

    async def prepare(self, artifact_id: str, ext4: Path) -> None:
        async with self._lock(artifact_id):
            if self._artifacts.read(artifact_id) is None:

                async def make(draft: Path) -> None:
                    (draft / "tree").mkdir(mode=0o755)
                    await unpack(ext4, draft / "tree")

                await self._artifacts.add(artifact_id, lambda: {"ext4": str(ext4)}, make)

    async def create(self, sandbox_id: str, artifact_id: str, snapshot_id: str | None = None, *, ids: int = 0) -> Path:  # noqa: ARG002
        async with self._lock(sandbox_id):
            found = self._roots.read(sandbox_id)
            if found is None:
                self._artifacts.need(artifact_id)
                source = self._artifacts.of(artifact_id)
                if snapshot_id is not None:
                    self._snapshot(snapshot_id, artifact_id)
                    source = self._snapshots.of(snapshot_id)
                await self._roots.add(
                    sandbox_id, lambda: {"artifact": artifact_id, "tree": 0}, lambda draft: _copy(source / "tree", draft / "root-0")
                )
                found = self._roots.need(sandbox_id)
            self._same(found, sandbox_id, artifact_id)
            return self._tree(sandbox_id, found)

    def _tree(self, sandbox_id: str, found: dict[str, Any]) -> Path:
        return self._roots.of(sandbox_id) / f"root-{found['tree']}"

    def _given(self, sandbox_id: str) -> Path:
        return self._tree(sandbox_id, self._roots.need(sandbox_id))

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> int:
        async with self._lock(sandbox_id):
            if (known := self._snapshots.read(snapshot_id)) is not None:
                return int(known["bytes"])
            found = self._roots.need(sandbox_id)
            manifest = {"artifact": found["artifact"], "bytes": 0}

            async def make(draft: Path) -> None:
                await _copy(self._tree(sandbox_id, found), draft / "tree")
                manifest["bytes"] = await asyncio.to_thread(trees.size, draft / "tree")

            await self._snapshots.add(snapshot_id, lambda: manifest, make)
            return int(self._snapshots.need(snapshot_id)["bytes"])

    def _trees(self, snapshot_id: str, found: dict[str, Any]) -> list[Path]:
        del found
        return [self._snapshots.of(snapshot_id) / "tree"]

    async def _settle(self, draft: Path, incoming: list[Path]) -> int:
        (only,) = incoming
        only.rename(draft / "tree")
        return await asyncio.to_thread(trees.size, draft / "tree")

    async def rollback(self, sandbox_id: str, snapshot_id: str) -> Path:
        """The copy is made beside the old tree; the manifest decides which of them counts."""
        async with self._lock(sandbox_id):
            found = self._roots.need(sandbox_id)
            self._snapshot(snapshot_id, found["artifact"])
            changed = {**found, "tree": found["tree"] + 1}
            fresh = self._tree(sandbox_id, changed)
            await asyncio.to_thread(trees.remove, fresh)  # of a rollback that was cut short
            await _copy(self._snapshots.of(snapshot_id) / "tree", fresh)
            self._roots.write(sandbox_id, changed)
            await asyncio.to_thread(trees.remove, self._tree(sandbox_id, found))
            return fresh

    async def remove(self, sandbox_id: str) -> None:
        async with self._lock(sandbox_id):
            await self._roots.discard(sandbox_id)

    async def forget(self, artifact_id: str) -> None:
        async with self._lock(artifact_id):
            await self._collect()
            self._refuse_in_use(artifact_id)
            await self._artifacts.discard(artifact_id)


async def _copy(source: Path, target: Path) -> None:
    await asyncio.to_thread(target.mkdir)
    await trees.copy(source, target)
