"""What all kinds of root storage share: who uses what, and what may be removed when.

Three shelves: artifacts (read-only, made once), roots (one per sandbox), snapshots (immutable). A snapshot that is removed while something
lies over it is only marked, and goes when nothing does any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from agents.drivers.driver import RuntimeFault
from agents.storage.shelf import Shelf

Trees = list[Path]
"""Those of a snapshot, the lowest first."""
Fill = Callable[[list[Path]], Awaitable[None]]
"""Fills empty directories with the trees of a snapshot, the lowest first."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Ids of what is on disk. Snapshots that are only kept for others are not in it."""

    roots: frozenset[str]
    snapshots: frozenset[str]
    artifacts: frozenset[str]


class Storage:
    """Base of the backends: bookkeeping and locks, no bytes."""

    kind = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._artifacts = Shelf(self.directory / "artifacts", "artifact")
        self._roots = Shelf(self.directory / "roots", "root", lasting=False)  # no sandbox survives the machine
        self._snapshots = Shelf(self.directory / "snapshots", "snapshot")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        for shelf in (self._artifacts, self._roots, self._snapshots):
            shelf.sweep()

    def _lock(self, name: str) -> asyncio.Lock:
        """One thing at a time per id; different ids in parallel."""
        found = self._locks.get(name)
        if found is None:
            found = self._locks[name] = asyncio.Lock()
        return found

    async def list(self) -> Inventory:
        kept = frozenset(name for name, manifest in self._snapshots.all().items() if not manifest.get("removed"))
        return Inventory(self._roots.ids(), kept, self._artifacts.ids())

    def _snapshot(self, snapshot_id: str, artifact_id: str) -> dict[str, Any]:
        """A snapshot that may be used over this artifact."""
        found = self._snapshots.need(snapshot_id)
        if found.get("removed"):
            raise RuntimeFault("snapshot.not-found", f"snapshot {snapshot_id} was removed")
        if found["artifact"] != artifact_id:
            raise RuntimeFault("snapshot.artifact-mismatch", f"snapshot {snapshot_id} lies over {found['artifact']}, not {artifact_id}")
        return found

    def _same(self, found: dict[str, Any], sandbox_id: str, artifact_id: str) -> None:
        if found["artifact"] != artifact_id:
            raise RuntimeFault("root.conflict", f"{sandbox_id} has a root over {found['artifact']} already")

    def _refuse_in_use(self, artifact_id: str) -> None:
        roots = [name for name, manifest in self._roots.all().items() if manifest["artifact"] == artifact_id]
        snapshots = [name for name, manifest in self._snapshots.all().items() if manifest["artifact"] == artifact_id]
        if roots or snapshots:
            users = ", ".join(sorted([*roots, *snapshots])[:5])
            raise RuntimeFault("artifact.in-use", f"{artifact_id} is used by {len(roots)} roots and {len(snapshots)} snapshots: {users}")

    def ids(self, sandbox_id: str) -> int:
        """The host's number of user 0 in a sandbox's root, as it was made."""
        return int((self._roots.read(sandbox_id) or {}).get("ids", 0))

    async def give(self, held: str, sandbox_id: str) -> Path:
        """A root that was made under another name is the sandbox's from now on; where it is. Raises ``root.not-given``."""
        async with self._lock(held), self._lock(sandbox_id):
            try:
                self._roots.give(held, sandbox_id)
            except OSError as error:  # there is none, or the sandbox has one
                raise RuntimeFault("root.not-given", f"{held} for {sandbox_id}: {error}") from error
            return self._given(sandbox_id)

    def _given(self, sandbox_id: str) -> Path:
        """Where a root is that is there already."""
        raise RuntimeFault("root.not-given", f"{sandbox_id} is not made of files")

    async def remove_snapshot(self, snapshot_id: str) -> None:
        async with self._lock(snapshot_id):
            found = self._snapshots.read(snapshot_id)
            if found is not None and not found.get("removed"):
                self._snapshots.write(snapshot_id, {**found, "removed": True})
        await self._collect()

    def layers(self, snapshot_id: str) -> tuple[str, str, Trees]:
        """Kind of storage, artifact and trees of a snapshot, the lowest first. Raises ``snapshot.not-found``."""
        found = self._snapshots.need(snapshot_id)
        found = self._snapshot(snapshot_id, found["artifact"])
        return self.kind, found["artifact"], self._trees(snapshot_id, found)

    async def receive(self, snapshot_id: str, artifact_id: str, kind: str, count: int, fill: Fill) -> None:
        """Take over a snapshot of ``count`` trees that ``fill`` makes. Idempotent. Raises ``snapshot.foreign-kind``."""
        if kind != self.kind:
            raise RuntimeFault("snapshot.foreign-kind", f"a snapshot of {kind} cannot be used over {self.kind}")
        async with self._lock(snapshot_id):
            if self._snapshots.read(snapshot_id) is not None:
                return
            manifest = {"artifact": artifact_id, "layers": [snapshot_id], "bytes": 0}

            async def make(draft: Path) -> None:
                incoming = [draft / f"in-{number}" for number in range(count)]
                for tree in incoming:
                    tree.mkdir()
                await fill(incoming)
                manifest["bytes"] = await self._settle(draft, incoming)

            await self._snapshots.add(snapshot_id, lambda: manifest, make)

    def _trees(self, snapshot_id: str, found: dict[str, Any]) -> Trees:
        """A snapshot's trees, the lowest first. Raises ``snapshot.not-exportable`` where it has none."""
        del found
        raise RuntimeFault("snapshot.not-exportable", f"snapshot {snapshot_id} is not made of files")

    async def _settle(self, draft: Path, incoming: Trees) -> int:
        """Make a snapshot's one tree of those that came in; returns its bytes."""
        del incoming
        raise RuntimeFault("snapshot.foreign-kind", f"nothing of that kind can be made in {draft.parent.name}")

    async def _collect(self) -> None:
        """Take away marked snapshots that nothing lies over any more; that may free others."""
        while True:
            snapshots = self._snapshots.all()
            used = {layer for manifest in self._roots.all().values() for layer in manifest.get("layers", ())}
            used |= {layer for name, manifest in snapshots.items() for layer in manifest.get("layers", ()) if layer != name}
            free = [name for name, manifest in snapshots.items() if manifest.get("removed") and name not in used]
            for name in free:
                await self._snapshots.discard(name)
            if not free:
                return
