"""The volumes of a node. Idempotent and crash safe: a volume is what its manifest says, and the manifest is written before the mount.

| of an image | is |
|---|---|
| ``image`` | the file system, as big as the disk, with holes where nothing was written |
| ``mnt`` | where it is mounted while a sandbox has it |
| ``snapshots/<name>`` | copies of the image, which share its blocks where the node's file system can |

A directory volume has ``data`` instead of image and mount, and no quota: that is what an agent without root, or without loop devices, has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from weakref import WeakValueDictionary

from agents.drivers.driver import RuntimeFault
from agents.host import loop, spawn, syscalls
from agents.storage import trees
from agents.storage.shelf import Shelf
from agents.volumes import filesystems, mounts
from domain.disks.fencing import Mounting

_MIB: Final = 1 << 20
_COPY_S: Final = 3600.0
_ANYBODY: Final = 0o777
"""Whatever user a sandbox runs as may write to its disk (reference/miren-sandbox.md §5.1, provider local)."""

Manifest = dict[str, Any]


class Volumes:
    """``directory`` is theirs. ``kind``: what can be made here; volumes of the other kind that are there can be used."""

    def __init__(self, directory: Path, kind: Literal["image", "directory"] | None = None) -> None:
        self._shelf = Shelf(directory.absolute(), "disk")
        self._shelf.sweep()
        self.kind = kind or ("image" if _can_loop(self._shelf.directory) else "directory")
        self.filesystems = filesystems.available() if self.kind == "image" else ()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held: dict[str, set[str]] = defaultdict(set)
        for name, found in self._shelf.all().items():
            if found["sandbox"] is not None:
                self._held[found["sandbox"]].add(name)
                mounts.thaw(self._mnt(name))  # an agent that died while it copied a snapshot has left it frozen

    def _lock(self, volume_id: str) -> asyncio.Lock:
        found = self._locks.get(volume_id)
        if found is None:
            found = self._locks[volume_id] = asyncio.Lock()
        return found

    def _image(self, volume_id: str) -> Path:
        return self._shelf.of(volume_id) / "image"

    def _mnt(self, volume_id: str) -> Path:
        return self._shelf.of(volume_id) / "mnt"

    def _snapshot(self, volume_id: str, name: str) -> Path:
        return self._shelf.of(volume_id) / "snapshots" / name

    # -------------------------------------------------------------------------------------------------- making and removing

    async def create(self, volume_id: str, size_mb: int, filesystem: str | None, source: tuple[str, str] | None = None) -> Manifest:
        """Make it, unless it is there. ``source``: a volume and its snapshot. Raises ``disk.unsupported``, ``disk.mkfs-failed``."""
        async with self._lock(volume_id):
            if self._shelf.read(volume_id) is None:
                self._require(filesystem)
                await self._make(volume_id, size_mb, filesystem, source)
            return self._shelf.need(volume_id)

    def _require(self, filesystem: str | None) -> None:
        if filesystem is not None and filesystem not in self.filesystems:
            raise RuntimeFault(
                "disk.unsupported", f"this node cannot make {filesystem}: {', '.join(self.filesystems) or 'directories only'}"
            )

    async def _make(self, volume_id: str, size_mb: int, filesystem: str | None, source: tuple[str, str] | None) -> None:
        manifest: Manifest = {
            "size_mb": size_mb,
            "filesystem": filesystem,
            "epoch": 0,
            "sandbox": None,
            "snapshots": {},
            "grow": False,
            "fresh": source is None,
        }

        async def make(draft: Path) -> None:
            (draft / "snapshots").mkdir()
            (draft / "mnt").mkdir()
            if source is not None:
                manifest["grow"] = await self._copy_of(source, draft, size_mb, filesystem)
            elif filesystem is not None:
                _sized(draft / "image", size_mb)
                if complaint := await filesystems.run(filesystems.FILESYSTEMS[filesystem].make(draft / "image")):
                    raise RuntimeFault("disk.mkfs-failed", complaint)
            else:
                (draft / "data").mkdir()
                (draft / "data").chmod(_ANYBODY)

        await self._shelf.add(volume_id, lambda: manifest, make)

    async def _copy_of(self, source: tuple[str, str], draft: Path, size_mb: int, filesystem: str | None) -> bool:
        """Fill the draft from a snapshot; says whether the file system has still to grow."""
        volume_id, name = source
        async with self._lock(volume_id):
            found = self._shelf.need(volume_id)
            if name not in found["snapshots"]:
                raise RuntimeFault("disk.snapshot-not-found", f"{volume_id} has no snapshot {name}")
            if found["filesystem"] != filesystem or not (filesystem is None or filesystems.FILESYSTEMS[filesystem].copies):
                raise RuntimeFault("disk.unsupported", f"no {filesystem or 'directory'} can be made of a snapshot of {found['filesystem']}")
            if found["snapshots"][name]["size_mb"] > size_mb:
                raise RuntimeFault("disk.cannot-shrink", f"the snapshot is {found['snapshots'][name]['size_mb']} MiB")
            if filesystem is None:
                (draft / "data").mkdir()
                await trees.copy(self._snapshot(volume_id, name), draft / "data")
                return False
            await _copy(self._snapshot(volume_id, name), draft / "image")
            if found["snapshots"][name]["size_mb"] == size_mb:
                return False
            _sized(draft / "image", size_mb)
            return not await filesystems.grow_image(filesystem, draft / "image")

    async def remove(self, volume_id: str) -> None:
        """Let it go, with its snapshots. One that is not here is gone already. Raises ``disk.in-use`` (retryable)."""
        async with self._lock(volume_id):
            found = self._shelf.read(volume_id)
            if found is None:
                return
            if found["sandbox"] is not None:
                raise RuntimeFault("disk.in-use", f"sandbox {found['sandbox']} has it mounted", retryable=True)
            await self._unmount(volume_id, found)
            await self._shelf.discard(volume_id)

    # ------------------------------------------------------------------------------------------------------------- mounting

    async def attach(self, volume_id: str, sandbox_id: str, epoch: int) -> None:
        """Have it mounted for that sandbox. Raises ``disk.stale-lease``, ``disk.busy``, ``disk.unmountable``."""
        async with self._lock(volume_id):
            found = self._shelf.need(volume_id)
            before = Mounting(epoch=found["epoch"], sandbox_id=found["sandbox"])
            after = before.admit(sandbox_id, epoch)
            if after != before:
                found = {**found, "epoch": after.epoch, "sandbox": sandbox_id}
                self._shelf.write(volume_id, found)
            self._held[sandbox_id].add(volume_id)
            await self._mount(volume_id, found)

    async def _mount(self, volume_id: str, found: Manifest) -> None:
        if found["filesystem"] is None:
            return
        place = self._mnt(volume_id)
        await asyncio.to_thread(mounts.mount, self._image(volume_id), place, found["filesystem"])
        if found["fresh"]:  # from then on it is the users' to say who may do what
            place.chmod(_ANYBODY)
        if found["grow"]:
            await mounts.grow(self._image(volume_id), place, found["filesystem"])
        if found["fresh"] or found["grow"]:
            self._shelf.write(volume_id, {**found, "fresh": False, "grow": False})

    def place(self, volume_id: str) -> Path:
        """The directory that a sandbox is to see."""
        return self._shelf.of(volume_id) / ("data" if self._shelf.need(volume_id)["filesystem"] is None else "mnt")

    async def detach(self, sandbox_id: str) -> None:
        """Have nothing mounted for that sandbox any more, which is down. Raises ``disk.still-mounted`` (retryable)."""
        for volume_id in sorted(self._held.get(sandbox_id, ())):
            async with self._lock(volume_id):
                found = self._shelf.read(volume_id)
                if found is not None and found["sandbox"] == sandbox_id:
                    await self._unmount(volume_id, found)
                    self._shelf.write(volume_id, {**found, "sandbox": None})
            self._held[sandbox_id].discard(volume_id)
        self._held.pop(sandbox_id, None)

    async def _unmount(self, volume_id: str, found: Manifest) -> None:
        if found["filesystem"] is not None:
            await mounts.unmount(self._image(volume_id), self._mnt(volume_id))

    async def remount(self, sandbox_id: str) -> None:
        """What a sandbox that lives is to have mounted, and has not: mount it again."""
        for volume_id in sorted(self._held.get(sandbox_id, ())):
            async with self._lock(volume_id):
                await self._mount(volume_id, self._shelf.need(volume_id))

    def holders(self) -> Mapping[str, frozenset[str]]:
        """The volumes that are, or may be, mounted for each sandbox."""
        return {sandbox: frozenset(volumes) for sandbox, volumes in self._held.items() if volumes}

    # ----------------------------------------------------------------------------------------------- growing and keeping

    async def grow(self, volume_id: str, size_mb: int) -> None:
        """Make it bigger, mounted or not. Raises ``disk.grow-failed``, and ``disk.grow-in-use`` where a mounted one cannot.

        A file system that cannot grow unmounted does when it is mounted next.
        """
        async with self._lock(volume_id):
            found = self._shelf.need(volume_id)
            if size_mb <= found["size_mb"]:
                return
            if found["filesystem"] is not None:
                found = {**found, "grow": await self._grow(volume_id, found["filesystem"], size_mb)}
            self._shelf.write(volume_id, {**found, "size_mb": size_mb})

    async def _grow(self, volume_id: str, filesystem: str, size_mb: int) -> bool:
        """Says whether the file system has still to grow."""
        image, place = self._image(volume_id), self._mnt(volume_id)
        if not place.is_mount():
            _sized(image, size_mb)
            return not await filesystems.grow_image(filesystem, image)
        if not filesystems.grows_mounted(filesystem):
            raise RuntimeFault("disk.grow-in-use", f"the agent lacks the right to grow a mounted {filesystem}: stop the sandbox first")
        _sized(image, size_mb)
        await mounts.grow(image, place, filesystem)
        return False

    async def snapshot(self, volume_id: str, name: str) -> int:
        """Keep it as it is; returns bytes. Raises ``disk.snapshot-unsupported`` for a directory that somebody may be writing to."""
        async with self._lock(volume_id):
            found = self._shelf.need(volume_id)
            if name not in found["snapshots"]:
                size = await self._keep(volume_id, found, name)
                kept = {**found["snapshots"], name: {"size_mb": found["size_mb"], "bytes": size}}
                self._shelf.write(volume_id, {**found, "snapshots": kept})
            return int(self._shelf.need(volume_id)["snapshots"][name]["bytes"])

    async def _keep(self, volume_id: str, found: Manifest, name: str) -> int:
        """The copy counts once the manifest names it; what a crash left of one is replaced."""
        target = self._snapshot(volume_id, name)
        await asyncio.to_thread(trees.remove, target)
        if found["filesystem"] is not None:
            async with self._frozen(volume_id):
                await _copy(self._image(volume_id), target)
        elif found["sandbox"] is not None:
            raise RuntimeFault(
                "disk.snapshot-unsupported", f"sandbox {found['sandbox']} may be writing to it, and a directory cannot be frozen"
            )
        else:
            target.mkdir()
            await trees.copy(self._shelf.of(volume_id) / "data", target)
        return await asyncio.to_thread(_bytes, target)

    @contextlib.asynccontextmanager
    async def _frozen(self, volume_id: str) -> AsyncIterator[None]:
        """Whole inside the block, whoever writes to it: everything is written out, and what comes then waits."""
        place = self._mnt(volume_id)
        if not place.is_mount():
            yield
            return
        try:
            await asyncio.to_thread(syscalls.freeze, place, on=True)
            yield
        finally:
            mounts.thaw(place)

    async def remove_snapshot(self, volume_id: str, name: str) -> None:
        """Let it go; none of that name is fine."""
        async with self._lock(volume_id):
            found = self._shelf.read(volume_id)
            if found is not None and name in found["snapshots"]:
                self._shelf.write(volume_id, {**found, "snapshots": {k: v for k, v in found["snapshots"].items() if k != name}})
                await asyncio.to_thread(trees.remove, self._snapshot(volume_id, name))

    async def close_all(self) -> None:
        """Unmount everything: for a purge, when nothing runs any more."""
        for name, found in self._shelf.all().items():
            await self._unmount(name, found)


def _sized(image: Path, size_mb: int) -> None:
    with image.open("ab") as file:
        os.ftruncate(file.fileno(), size_mb * _MIB)


async def _copy(source: Path, target: Path) -> None:
    done = await spawn.run(["cp", "--reflink=auto", "--sparse=always", "--", str(source), str(target)], timeout_s=_COPY_S)
    if done.code != 0:
        await asyncio.to_thread(trees.remove, target)
        if "No space left" in done.complaint():
            raise RuntimeFault("node.disk-full", f"no room for a copy of {source.name}", retryable=True)
        raise RuntimeFault("storage.copy-failed", done.complaint())


def _bytes(path: Path) -> int:
    return trees.size(path) if path.is_dir() else path.stat().st_blocks * 512


def _can_loop(directory: Path) -> bool:
    """Tried, not guessed: root of a container often has no loop devices."""
    probe = directory / ".probe"
    if os.geteuid() != 0:
        return False
    try:
        _sized(probe, 1)
        with loop.attached(probe, writable=True):
            return True
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
