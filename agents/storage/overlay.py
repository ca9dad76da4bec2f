"""Roots as overlay mounts: a sandbox's own changes over snapshots over the artifact. Needs root.

The artifact's ext4 file is mounted once, read-only, by a loop device (unpacked where there is none); a root is then one mount(2) of 0.2 ms
(reference/runtimes.md §7), and a sandbox from a snapshot costs no copy: the snapshot is one more lower layer. Mounts live in the data
directory, which stays shared with the host, so that they outlive the agent (``agents.drivers.hostns``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agents.drivers.driver import RuntimeFault
from agents.host import idmap, loop, syscalls
from agents.storage import trees
from agents.storage.base import Storage
from agents.storage.unpack import unpack

MAX_LAYERS: Final = 8
"""Snapshots under one root; one more and the layers are merged into one. The kernel's bound is one page of mount options."""

_OPTIONS: Final = "redirect_dir=off,metacopy=off,index=off"  # an upper directory must mean the same over every copy of its lowers


class OverlayRoots(Storage):
    kind = "overlay"

    async def prepare(self, artifact_id: str, ext4: Path) -> None:
        async with self._lock(artifact_id):
            found = self._artifacts.read(artifact_id)
            if found is None:
                await self._add_artifact(artifact_id, ext4)
                found = self._artifacts.need(artifact_id)
            elif found["loop"] and found["ext4"] != str(ext4):
                self._artifacts.write(artifact_id, {**found, "ext4": str(ext4)})
            self._mount_artifact(artifact_id)

    async def _add_artifact(self, artifact_id: str, ext4: Path) -> None:
        can_loop = await asyncio.to_thread(_can_loop, ext4)

        async def make(draft: Path) -> None:
            (draft / "lower").mkdir(mode=0o755)
            if not can_loop:
                await unpack(ext4, draft / "lower")

        await self._artifacts.add(artifact_id, lambda: {"ext4": str(ext4), "loop": can_loop}, make)

    def _mount_artifact(self, artifact_id: str) -> None:
        """Mounts do not outlive a reboot, so this is asked each time."""
        found, lower = self._artifacts.need(artifact_id), self._lower(artifact_id)
        if found["loop"] and not lower.is_mount():
            try:
                _mount_ext4(Path(found["ext4"]), lower)
            except OSError as error:
                raise RuntimeFault("artifact.unreadable", str(error), retryable=error.errno == errno.EBUSY) from error

    def _lower(self, artifact_id: str) -> Path:
        return self._artifacts.of(artifact_id) / "lower"

    def _layers(self, snapshot_ids: Sequence[str]) -> list[Path]:
        return [self._snapshots.of(name) / "layer" for name in snapshot_ids]

    async def create(self, sandbox_id: str, artifact_id: str, snapshot_id: str | None = None, *, ids: int = 0) -> Path:
        async with self._lock(sandbox_id):
            found = self._roots.read(sandbox_id)
            if found is None:
                self._artifacts.need(artifact_id)
                layers = self._snapshot(snapshot_id, artifact_id)["layers"] if snapshot_id else []
                await self._roots.add(sandbox_id, lambda: {"artifact": artifact_id, "layers": layers, "upper": 0, "ids": ids}, _make_root)
                found = self._roots.need(sandbox_id)
            self._same(found, sandbox_id, artifact_id)
            return self._mount_root(sandbox_id, found)

    def _mount_root(self, sandbox_id: str, found: dict[str, Any]) -> Path:
        directory = self._roots.of(sandbox_id)
        root = directory / "root"
        if root.is_mount():
            return root
        self._mount_artifact(found["artifact"])
        lowers = [*self._layers(found["layers"]), self._lower(found["artifact"])]
        upper, work = directory / f"upper-{found['upper']}", directory / f"work-{found['upper']}"
        if not upper.exists():
            _make_upper(upper, lowers[0])
        work.mkdir(exist_ok=True)
        try:
            with idmap.views(found.get("ids", 0)) as view:
                below, own = ":".join(_escape(view(path)) for path in lowers), _escape(view(directory))
                options = f"lowerdir={below},upperdir={own}/{upper.name},workdir={own}/{work.name},{_OPTIONS}"
                syscalls.mount(str(directory), root, "overlay", syscalls.MS_NODEV, options)
        except OSError as error:
            raise RuntimeFault("root.mount-failed", str(error)) from error
        return root

    def _given(self, sandbox_id: str) -> Path:
        return self._roots.of(sandbox_id) / "root"

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> int:
        async with self._lock(sandbox_id):
            if (known := self._snapshots.read(snapshot_id)) is not None:
                return int(known["bytes"])
            found = self._roots.need(sandbox_id)
            upper = self._roots.of(sandbox_id) / f"upper-{found['upper']}"
            flat = len(found["layers"]) >= MAX_LAYERS
            manifest = {"artifact": found["artifact"], "layers": [snapshot_id, *([] if flat else found["layers"])], "bytes": 0}

            async def make(draft: Path) -> None:
                layer = draft / "layer"
                layer.mkdir()
                await trees.merge([*reversed(self._layers(found["layers"])), upper] if flat else [upper], layer)
                manifest["bytes"] = await asyncio.to_thread(trees.size, layer)

            await self._snapshots.add(snapshot_id, lambda: manifest, make)
            return int(self._snapshots.need(snapshot_id)["bytes"])

    def _trees(self, snapshot_id: str, found: dict[str, Any]) -> list[Path]:
        del snapshot_id
        return [*reversed(self._layers(found["layers"]))]

    async def _settle(self, draft: Path, incoming: list[Path]) -> int:
        layer = draft / "layer"
        if len(incoming) == 1:
            incoming[0].rename(layer)
        else:
            layer.mkdir()
            await trees.merge(incoming, layer)
            for tree in incoming:
                await asyncio.to_thread(trees.remove, tree)
        return await asyncio.to_thread(trees.size, layer)

    async def rollback(self, sandbox_id: str, snapshot_id: str) -> Path:
        """The manifest decides which changes count; what they replace is taken away after it has changed."""
        async with self._lock(sandbox_id):
            found = self._roots.need(sandbox_id)
            layers = self._snapshot(snapshot_id, found["artifact"])["layers"]
            _unmount(self._roots.of(sandbox_id) / "root")
            changed = {**found, "layers": layers, "upper": found["upper"] + 1}
            self._roots.write(sandbox_id, changed)
            root = self._mount_root(sandbox_id, changed)
            await self._remove_old_changes(sandbox_id, changed["upper"])
        await self._collect()
        return root

    async def _remove_old_changes(self, sandbox_id: str, current: int) -> None:
        for path in self._roots.of(sandbox_id).iterdir():
            kind, _, number = path.name.partition("-")
            if kind in ("upper", "work") and number != str(current):
                await asyncio.to_thread(trees.remove, path)

    async def remove(self, sandbox_id: str) -> None:
        async with self._lock(sandbox_id):
            _unmount(self._roots.of(sandbox_id) / "root")
            await self._roots.discard(sandbox_id)
        await self._collect()

    async def forget(self, artifact_id: str) -> None:
        async with self._lock(artifact_id):
            await self._collect()
            self._refuse_in_use(artifact_id)
            _unmount(self._lower(artifact_id))
            await self._artifacts.discard(artifact_id)


def _make_root(draft: Path) -> None:
    (draft / "root").mkdir(mode=0o755)


def _make_upper(upper: Path, below: Path) -> None:
    """The root directory that a sandbox sees has the attributes of the topmost layer's."""
    upper.mkdir()
    seen = below.stat()
    os.chown(upper, seen.st_uid, seen.st_gid)
    shutil.copystat(below, upper)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _mount_ext4(ext4: Path, target: Path) -> None:
    with loop.attached(ext4) as device:
        syscalls.mount(device, target, "ext4", syscalls.MS_RDONLY | syscalls.MS_NODEV, "noload")


def _can_loop(ext4: Path) -> bool:
    try:
        with loop.attached(ext4):
            return True
    except OSError:
        return False


def _unmount(target: Path) -> None:
    """Also when something still looks at it: then it goes with the last who does."""
    while target.is_mount():
        with contextlib.suppress(OSError):
            syscalls.umount(target)
            continue
        syscalls.umount(target, syscalls.MNT_DETACH)
