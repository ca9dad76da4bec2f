"""Root storage under one contract: each backend, over a real ext4 file, leaving nothing behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import leftovers, rootfs
from support.waiting import run

from agents.storage.base import Storage
from agents.storage.copies import CopyRoots
from agents.storage.overlay import OverlayRoots
from agents.storage.roots import choose_roots


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if rootfs.BUSYBOX is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("busybox or e2fsprogs is not installed")
    base = tmp_path_factory.mktemp("artifact")
    tree = rootfs.make(base / "tree")
    (tree / "srv/lower").write_text("of the artifact")
    os.link(tree / "srv/lower", tree / "srv/second-name")
    (tree / "srv/private").write_text("x")
    (tree / "srv/private").chmod(0o400)
    for name in ("a", "b"):
        (tree / "srv/deep" / name).write_text(name)
    (tree / "srv/with space").mkdir()
    shutil.copy(tree / "srv/lower", tree / "srv/with space/set uid")
    if os.geteuid() == 0:
        os.chown(tree / "srv/lower", 1000, 100)
    (tree / "srv/with space/set uid").chmod(0o4755)
    (tree / "srv/deep").chmod(0o2775)
    os.setxattr(tree / "srv/lower", "user.colour", b"blue\0\xff")
    os.setxattr(tree / "srv/deep", "user.of-a-folder", b"1")
    return rootfs.make_ext4(tree, base / "rootfs.ext4")


@pytest.fixture(params=[pytest.param("overlay", marks=pytest.mark.root), "copy"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> type[OverlayRoots | CopyRoots]:
    if request.param == "copy":
        return CopyRoots
    if not isinstance(choose_roots(tmp_path / "probe"), OverlayRoots):
        pytest.skip("overlay mounts need root, and a file system that can be their upper")
    return OverlayRoots


@pytest.fixture
def storage(backend: type[OverlayRoots | CopyRoots], tmp_path: Path, ext4: Path) -> Iterator[Storage]:
    before = leftovers.traces(tmp_path)
    made = backend(tmp_path / "store")
    run(made.prepare("rfs-1", ext4))
    yield made
    run(_clear(backend(tmp_path / "store")))
    assert leftovers.left(lambda: leftovers.traces(tmp_path), before) == {}
    assert [path for shelf in (tmp_path / "store").iterdir() for path in shelf.iterdir()] == []


async def _clear(storage: OverlayRoots | CopyRoots) -> None:
    found = await storage.list()
    for name in found.roots:
        await storage.remove(name)
    for name in found.snapshots:
        await storage.remove_snapshot(name)
    for name in found.artifacts:
        await storage.forget(name)
