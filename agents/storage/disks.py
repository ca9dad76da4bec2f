"""Roots as disks: for each sandbox a qcow2 overlay over snapshots over the artifact's ext4 file. No mounts, no root, any file system.

All overlays lie in one directory and never move, for each names the one below it; who still leads to one keeps it. Only a running machine
can freeze its disk at the moment at which its memory is saved, so a snapshot is taken by the driver, with what is prepared here.

For other nodes a snapshot is two trees of files: its memory, and its overlays, numbered from the lowest, which lies over the artifact.
"""

from __future__ import annotations

import asyncio
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn
from agents.storage import qcow2, trees
from agents.storage.base import Fill, Storage

Take = Callable[[Path, Path], Awaitable[Path]]
"""(an empty directory for the memory, an empty overlay to go on with) to the overlay that is frozen now: ``CanSnapshot.snapshot``."""

KIND: Final = "disks"
_MEMORY: Final = "memory"
_CHAIN: Final = "chain"
_COPY_S: Final = 3600.0


class DiskRoots(Storage):
    kind = KIND

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._overlays = self.directory / "overlays"
        self._overlays.mkdir(mode=0o700, exist_ok=True)
        self._making: set[str] = set()
        """Overlays that no manifest names yet."""

    async def prepare(self, artifact_id: str, ext4: Path) -> None:
        async with self._lock(artifact_id):
            found = self._artifacts.read(artifact_id)
            if found is None:
                await self._artifacts.add(artifact_id, lambda: {"ext4": str(ext4)}, lambda _: None)
            elif found["ext4"] != str(ext4):
                self._artifacts.write(artifact_id, {**found, "ext4": str(ext4)})

    async def create(self, sandbox_id: str, artifact_id: str, snapshot_id: str | None = None) -> Path:
        async with self._lock(sandbox_id):
            found = self._roots.read(sandbox_id)
            if found is None:
                below = Path(self._artifacts.need(artifact_id)["ext4"])
                if snapshot_id is not None:
                    below = self._overlay(self._snapshot(snapshot_id, artifact_id)["disk"])
                layers = [snapshot_id] if snapshot_id else []
                with self._fresh(below) as disk:
                    await self._roots.add(sandbox_id, lambda: {"artifact": artifact_id, "disk": disk, "layers": layers}, lambda _: None)
                found = self._roots.need(sandbox_id)
            self._same(found, sandbox_id, artifact_id)
            return self._overlay(found["disk"])

    def _overlay(self, name: str) -> Path:
        return self._overlays / f"{name}.qcow2"

    def _fresh(self, below: Path) -> _Fresh:
        return _Fresh(self._making, self._overlay, below)

    async def snapshot(self, sandbox_id: str, snapshot_id: str, take: Take) -> int:
        """The root names the new overlay before it is used; it leads to the old one, so that a crash loses neither."""
        async with self._lock(sandbox_id):
            if (known := self._snapshots.read(snapshot_id)) is not None:
                return int(known["bytes"])
            found = self._roots.need(sandbox_id)
            manifest = {"artifact": found["artifact"], "bytes": 0, "disk": ""}
            with self._fresh(self._overlay(found["disk"])) as disk:
                self._roots.write(sandbox_id, {**found, "disk": disk})

                async def make(draft: Path) -> None:
                    memory = draft / _MEMORY
                    memory.mkdir(mode=0o700)
                    frozen = await take(memory, self._overlay(disk))
                    size = await asyncio.to_thread(lambda: trees.size(memory) + frozen.stat().st_blocks * 512)
                    manifest.update(disk=frozen.stem, bytes=size)

                await self._snapshots.add(snapshot_id, lambda: manifest, make)
            return int(manifest["bytes"])

    def memory(self, snapshot_id: str) -> Path | None:
        """The memory that a snapshot holds; None when there is no such snapshot here."""
        path = self._snapshots.of(snapshot_id) / _MEMORY
        return path if path.is_dir() else None

    def _trees(self, snapshot_id: str, found: dict[str, Any]) -> list[Path]:
        """The overlays under names that say their order: links, for what is frozen never changes."""
        memory, chain = (self._snapshots.of(snapshot_id) / name for name in (_MEMORY, _CHAIN))
        if not chain.is_dir():
            draft = chain.with_name(f".{_CHAIN}-{secrets.token_hex(4)}")
            draft.mkdir(mode=0o700)
            for number, name in enumerate(reversed([*self._chain(found["disk"])])):
                (draft / f"{number:06}.qcow2").hardlink_to(self._overlay(name))
            draft.rename(chain)
        return [memory, chain]

    async def receive(self, snapshot_id: str, artifact_id: str, kind: str, count: int, fill: Fill) -> None:
        """As ``Storage``. Raises ``snapshot.unreadable`` for what is not two trees of plain files."""
        if kind != self.kind or count != 2:
            raise RuntimeFault("snapshot.foreign-kind", f"a snapshot of {count} trees of {kind} cannot be used as a disk")
        async with self._lock(snapshot_id):
            if self._snapshots.read(snapshot_id) is not None:
                return
            artifact = Path(self._artifacts.need(artifact_id)["ext4"])
            manifest = {"artifact": artifact_id, "disk": "", "bytes": 0}
            named: list[str] = []

            async def make(draft: Path) -> None:
                memory, chain = draft / _MEMORY, draft / _CHAIN
                for tree in (memory, chain):
                    tree.mkdir(mode=0o700)
                await fill([memory, chain])
                named.extend(secrets.token_hex(8) for _ in chain.iterdir())
                self._making.update(named)
                await asyncio.to_thread(self._adopt, [memory, chain], named, artifact)
                manifest.update(disk=named[-1], bytes=await asyncio.to_thread(trees.size, memory))

            try:
                await self._snapshots.add(snapshot_id, lambda: manifest, make)
            finally:
                self._making.difference_update(named)

    def _adopt(self, incoming: list[Path], names: list[str], below: Path) -> None:
        """Give the overlays that came in names of this node's, each over the one before it."""
        for path in [path for tree in incoming for path in tree.iterdir()]:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise RuntimeFault("snapshot.unreadable", f"{path.name} is no plain file")
        chain = incoming[-1]
        if not names:
            raise RuntimeFault("snapshot.unreadable", "a memory without a disk")
        for name, path in zip(names, sorted(chain.iterdir()), strict=True):
            qcow2.adopt(path, below)
            below = self._overlay(name)
            path.replace(below)
        chain.rmdir()

    async def flatten(self, sandbox_id: str) -> Path:
        """A root's disk with all that is below it as one raw file, which goes with the root.

        Raises ``storage.no-qemu-img``, ``storage.copy-failed``.
        """
        found = self._roots.need(sandbox_id)
        flat = self._roots.of(sandbox_id) / "flat"
        try:
            command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(self._overlay(found["disk"])), str(flat)]
            done = await spawn.run(command, timeout_s=_COPY_S)
        except FileNotFoundError as error:
            raise RuntimeFault("storage.no-qemu-img", "qemu-img is not installed (apt-get install qemu-utils)") from error
        if done.code != 0:
            raise RuntimeFault("storage.copy-failed", done.complaint())
        return flat

    def has(self, sandbox_id: str) -> bool:
        """Whether a sandbox has its root here."""
        return self._roots.read(sandbox_id) is not None

    async def rollback(self, sandbox_id: str, snapshot_id: str) -> Path:
        async with self._lock(sandbox_id):
            found = self._roots.need(sandbox_id)
            below = self._overlay(self._snapshot(snapshot_id, found["artifact"])["disk"])
            with self._fresh(below) as disk:
                self._roots.write(sandbox_id, {**found, "disk": disk, "layers": [snapshot_id]})
        await self._collect()
        return self._overlay(disk)

    async def remove(self, sandbox_id: str) -> None:
        async with self._lock(sandbox_id):
            await self._roots.discard(sandbox_id)
        await self._collect()

    async def forget(self, artifact_id: str) -> None:
        async with self._lock(artifact_id):
            await self._collect()
            self._refuse_in_use(artifact_id)
            await self._artifacts.discard(artifact_id)

    async def _collect(self) -> None:
        """Snapshots that are only kept for others, then overlays that nothing leads to."""
        await super()._collect()
        kept = {name for top in [*self._tops(), *self._making] for name in self._chain(top)}
        for path in self._overlays.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def _tops(self) -> Iterator[str]:
        for shelf in (self._roots, self._snapshots):
            yield from (manifest["disk"] for manifest in shelf.all().values())

    def _chain(self, name: str) -> Iterator[str]:
        path: Path | None = self._overlay(name)
        while path is not None and path.parent == self._overlays and path.exists():
            yield path.stem
            path = qcow2.below(path)


class _Fresh:
    """A new overlay that is kept while a manifest that names it is being written; gone again when that fails."""

    def __init__(self, making: set[str], place: Callable[[str], Path], below: Path) -> None:
        self._making = making
        self._place = place
        self._below = below
        self._name = secrets.token_hex(8)

    def __enter__(self) -> str:
        self._making.add(self._name)
        try:
            qcow2.create(self._place(self._name), self._below)
        except OSError as error:
            self._making.discard(self._name)
            raise RuntimeFault("root.not-made", str(error), retryable=True) from error
        return self._name

    def __exit__(self, *_: object) -> None:
        self._making.discard(self._name)
