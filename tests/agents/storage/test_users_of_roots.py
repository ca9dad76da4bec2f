"""Roots whose user 0 is some other user of the host: seen so by who looks at the root, and kept on disk as ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.host import idmap, syscalls

IDS = idmap.range_of("0123abcd")

pytestmark = [pytest.mark.root, pytest.mark.parametrize("backend", ["overlay"], indirect=True)]


@pytest.fixture(autouse=True)
def able(tmp_path: Path) -> None:
    if not idmap.overlay_works(tmp_path, IDS):
        pytest.skip("this kernel takes no ID-mapped layers")


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def test_every_user_of_a_root_is_another_one_of_the_host(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1", ids=IDS)
        assert storage.ids("sb-1") == IDS
        assert (owner(root), owner(root / "srv/lower"), owner(root / "bin/sh")) == (
            (IDS, IDS),
            (IDS + 1000, IDS + 100),
            (IDS, IDS),
        )
        assert await storage.create("sb-1", "rfs-1") == root
        assert storage.ids("sb-1") == IDS, "as it was made"
        plain = await storage.create("sb-2", "rfs-1")
        assert (storage.ids("sb-2"), owner(plain / "srv/lower")) == (0, (1000, 100))

    run(scenario())


def test_a_snapshot_lies_under_roots_of_either_kind(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1", ids=IDS)
        (root / "file").write_text("x")
        os.chown(root / "file", IDS + 5, IDS + 6)
        os.chown(root / "srv/lower", IDS + 7, IDS + 7)
        (root / "srv/deep/a").unlink()
        await storage.snapshot("sb-1", "snap-1")
        plain = await storage.create("sb-2", "rfs-1", "snap-1")
        mapped = await storage.create("sb-3", "rfs-1", "snap-1", ids=IDS)
        for there, first in ((plain, 0), (mapped, IDS)):
            assert owner(there / "file") == (first + 5, first + 6)
            assert owner(there / "srv/lower") == (first + 7, first + 7)
            assert not (there / "srv/deep/a").exists()
        back = await storage.rollback("sb-3", "snap-1")
        assert owner(back / "file") == (IDS + 5, IDS + 6)

    run(scenario())


def test_a_kernel_that_cannot_says_so(storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(syscalls, "map_ids", refuse)
    assert not idmap.overlay_works(tmp_path, IDS)
    with pytest.raises(RuntimeFault, match="Invalid argument"):
        run(storage.create("sb-1", "rfs-1", ids=IDS))
