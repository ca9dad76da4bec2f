"""Contract: artifacts, roots over them, snapshots of those."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.storage.overlay import MAX_LAYERS, OverlayRoots
from agents.storage.shelf import Shelf

OVERLAY = pytest.mark.parametrize("backend", [pytest.param("overlay", marks=pytest.mark.root)], indirect=True)


def test_a_root_holds_what_the_artifact_holds(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        assert (root / "srv/lower").read_text() == "of the artifact"
        assert (root / "bin/sh").readlink() == Path("busybox")
        assert stat.S_IMODE((root / "srv/private").stat().st_mode) == 0o400
        assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
        assert stat.S_IMODE((root / "srv/with space/set uid").stat().st_mode) == 0o4755
        assert stat.S_IMODE((root / "srv/deep").stat().st_mode) == 0o2775
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        assert (root / "srv/lower").samefile(root / "srv/second-name")
        assert os.getxattr(root / "srv/lower", "user.colour") == b"blue\0\xff"
        assert os.getxattr(root / "srv/deep", "user.of-a-folder") == b"1"
        if os.geteuid() == 0:
            assert ((root / "srv/lower").stat().st_uid, (root / "srv/lower").stat().st_gid) == (1000, 100)

    run(scenario())


def test_roots_are_strangers_to_each_other_and_leave_the_artifact_alone(storage) -> None:
    async def scenario() -> None:
        one, two = await asyncio.gather(storage.create("sb-1", "rfs-1"), storage.create("sb-2", "rfs-1"))
        (one / "srv/lower").write_text("changed")
        shutil.rmtree(one / "srv/deep")
        (one / "new").write_text("new")
        three = await storage.create("sb-3", "rfs-1")
        for other in (two, three):
            assert (other / "srv/lower").read_text() == "of the artifact"
            assert (other / "srv/deep/a").exists()
            assert not (other / "new").exists()

    run(scenario())


def test_making_a_root_again_gives_the_same_root(storage, backend, tmp_path: Path, ext4: Path) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "kept").write_text("here")
        assert await storage.create("sb-1", "rfs-1") == root
        later = backend(tmp_path / "store")
        await later.prepare("rfs-1", ext4)
        assert await later.create("sb-1", "rfs-1") == root
        assert (root / "kept").read_text() == "here"
        await storage.prepare("rfs-2", ext4)
        with pytest.raises(RuntimeFault) as refusal:
            await storage.create("sb-1", "rfs-2")
        assert refusal.value.code == "root.conflict"

    run(scenario())


def test_a_snapshot_holds_everything_that_a_file_system_can_hold(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        _change(root)
        seen = _describe(root)
        assert await storage.snapshot("sb-1", "snap-1") > 0
        (root / "srv/lower").write_text("later")
        shutil.rmtree(root / "fresh")
        again = await storage.create("sb-2", "rfs-1", "snap-1")
        assert _describe(again) == seen
        sparse = (again / "fresh/sparse").stat()
        assert (sparse.st_size, sparse.st_blocks < 100) == (50 << 20, True)
        assert (again / "fresh/one").stat().st_ino == (again / "fresh/two").stat().st_ino

    run(scenario())


def _change(root: Path) -> None:
    """Every kind of change that is hard to keep: deletions, replaced directories, links, holes, modes, owners, times, attributes."""
    (root / "srv/lower").unlink()
    shutil.rmtree(root / "srv/deep")
    (root / "srv/deep").mkdir(mode=0o750)
    (root / "srv/deep/c").write_text("c")
    (root / "etc/group").unlink()
    (root / "etc/group").mkdir()
    (root / "fresh").mkdir(mode=0o711)
    (root / "fresh/one").write_text("twice")
    os.link(root / "fresh/one", root / "fresh/two")
    (root / "fresh/link").symlink_to("/nowhere")
    with (root / "fresh/sparse").open("wb") as file:
        file.truncate(50 << 20)
        file.seek(10 << 20)
        file.write(b"island")
    os.mkfifo(root / "fresh/fifo", 0o640)
    os.setxattr(root / "fresh/one", "user.colour", b"blue")
    (root / "fresh/program").write_text("x")
    (root / "fresh/program").chmod(0o4755)
    os.utime(root / "fresh/program", (1_000_000_000, 1_000_000_000))
    if os.geteuid() == 0:
        os.chown(root / "fresh/one", 1234, 5678)
        os.chown(root / "fresh/link", 1234, 5678, follow_symlinks=False)
        os.mknod(root / "fresh/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _describe(root: Path) -> dict[str, object]:
    """Each path with what it is; a directory's own times are not content."""
    found: dict[str, object] = {}
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(directory, name)
            seen = path.lstat()
            content: object = None
            if stat.S_ISLNK(seen.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(seen.st_mode) and os.access(path, os.R_OK):
                content = hash(path.read_bytes()), int(seen.st_mtime)
            owner = (seen.st_uid, seen.st_gid, seen.st_rdev)
            attributes = sorted(os.listxattr(path, follow_symlinks=False)) if os.access(path, os.R_OK) else []
            found[str(path.relative_to(root))] = (seen.st_mode, owner, content, attributes)
    return found


def test_a_snapshot_never_changes(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "file").write_text("then")
        size = await storage.snapshot("sb-1", "snap-1")
        (root / "file").write_text("now, and longer")
        assert await storage.snapshot("sb-1", "snap-1") == size
        copy = await storage.create("sb-2", "rfs-1", "snap-1")
        (copy / "file").write_text("elsewhere")
        (copy / "srv/lower").unlink()
        third = await storage.create("sb-3", "rfs-1", "snap-1")
        assert (third / "file").read_text() == "then"
        assert (third / "srv/lower").exists()

    run(scenario())


def test_rolling_back_takes_away_what_came_after(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "file").write_text("then")
        (root / "srv/deep/a").unlink()
        await storage.snapshot("sb-1", "snap-1")
        before = _describe(root)
        (root / "file").unlink()
        (root / "srv/deep/a").write_text("back")
        (root / "more").mkdir()
        root = await storage.rollback("sb-1", "snap-1")
        assert _describe(root) == before
        (root / "file").write_text("again")
        root = await storage.rollback("sb-1", "snap-1")
        assert _describe(root) == before

    run(scenario())


def test_a_root_from_a_snapshot_can_be_snapshot_and_so_on(storage) -> None:
    """Deeper than the layers that one mount may have."""

    async def scenario() -> None:
        root = await storage.create("sb-0", "rfs-1")
        for depth in range(MAX_LAYERS + 3):
            (root / f"file-{depth}").write_text(str(depth))
            if depth >= 2:
                (root / f"file-{depth - 2}").unlink()
            shutil.rmtree(root / "srv/deep")
            (root / "srv/deep").mkdir()
            (root / f"srv/deep/{depth}").touch()
            await storage.snapshot(f"sb-{depth}", f"snap-{depth}")
            root = await storage.create(f"sb-{depth + 1}", "rfs-1", f"snap-{depth}")
        assert sorted(path.name for path in root.glob("file-*")) == sorted(f"file-{n}" for n in (MAX_LAYERS + 1, MAX_LAYERS + 2))
        assert [path.name for path in (root / "srv/deep").iterdir()] == [str(MAX_LAYERS + 2)]
        early = await storage.create("sb-early", "rfs-1", "snap-1")
        assert sorted(path.name for path in early.glob("file-*")) == ["file-0", "file-1"]

    run(scenario())


def test_removing_a_snapshot_takes_nothing_from_those_who_came_from_it(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "file").write_text("old")
        await storage.snapshot("sb-1", "snap-1")
        child = await storage.create("sb-2", "rfs-1", "snap-1")
        await storage.snapshot("sb-2", "snap-2")
        await storage.remove("sb-1")
        await storage.remove_snapshot("snap-1")
        await storage.remove_snapshot("snap-1")
        await storage.remove_snapshot("snap-none")
        assert (await storage.list()).snapshots == {"snap-2"}
        assert (child / "file").read_text() == "old"
        with pytest.raises(RuntimeFault) as refusal:
            await storage.create("sb-3", "rfs-1", "snap-1")
        assert refusal.value.code == "snapshot.not-found"
        await storage.remove("sb-2")
        again = await storage.create("sb-4", "rfs-1", "snap-2")
        assert (again / "file").read_text() == "old"

    run(scenario())


def test_an_artifact_in_use_is_not_forgotten(storage, ext4: Path) -> None:
    async def scenario() -> None:
        await storage.create("sb-1", "rfs-1")
        await storage.snapshot("sb-1", "snap-1")
        for _ in range(2):
            with pytest.raises(RuntimeFault) as refusal:
                await storage.forget("rfs-1")
            assert refusal.value.code == "artifact.in-use"
            await storage.remove("sb-1")
        await storage.remove_snapshot("snap-1")
        await storage.forget("rfs-1")
        await storage.forget("rfs-1")
        assert (await storage.list()).artifacts == frozenset()
        with pytest.raises(RuntimeFault) as missing:
            await storage.create("sb-1", "rfs-1")
        assert missing.value.code == "artifact.not-found"
        await storage.prepare("rfs-1", ext4)

    run(scenario())


def test_a_snapshot_of_one_artifact_does_not_lie_over_another(storage, ext4: Path) -> None:
    async def scenario() -> None:
        await storage.prepare("rfs-2", ext4)
        await storage.create("sb-1", "rfs-1")
        await storage.snapshot("sb-1", "snap-1")
        await storage.create("sb-2", "rfs-2")
        for attempt in (storage.create("sb-3", "rfs-2", "snap-1"), storage.rollback("sb-2", "snap-1")):
            with pytest.raises(RuntimeFault) as refusal:
                await attempt
            assert refusal.value.code == "snapshot.artifact-mismatch"
        assert "sb-3" not in (await storage.list()).roots

    run(scenario())


def test_removing_is_for_ever_and_twice_is_fine(storage) -> None:
    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "locked").mkdir()
        (root / "locked/file").touch()
        (root / "locked").chmod(0o500)
        await storage.remove("sb-1")
        await storage.remove("sb-1")
        await storage.remove("sb-never-heard-of")
        assert not root.exists()
        assert (await storage.list()).roots == frozenset()

    run(scenario())


def test_ids_that_are_paths_are_refused(storage) -> None:
    async def scenario() -> None:
        for attempt in (
            storage.create("../x", "rfs-1"),
            storage.remove(".."),
            storage.forget("a/b"),
            storage.create("sb-1", "rfs-1", "/etc"),
        ):
            with pytest.raises(RuntimeFault):
                await attempt

    run(scenario())


def test_an_artifact_that_is_no_file_system_is_refused_and_leaves_nothing(storage, tmp_path: Path) -> None:
    async def scenario() -> None:
        bad = tmp_path / "bad.ext4"
        bad.write_bytes(b"no file system" * 1000)
        with pytest.raises(RuntimeFault) as refusal:
            await storage.prepare("rfs-bad", bad)
        assert refusal.value.code == "artifact.unreadable"
        await storage.forget("rfs-bad")

    run(scenario())


def test_what_a_crash_left_half_made_is_swept_away(storage, backend, tmp_path: Path) -> None:
    async def scenario() -> None:
        await storage.create("sb-1", "rfs-1")
        for shelf in ("roots", "snapshots", "artifacts"):
            (tmp_path / "store" / shelf / ".new-sb-2-1234/deep").mkdir(parents=True)
            (tmp_path / "store" / shelf / ".old-sb-3-1234/deep").mkdir(parents=True)
        later = backend(tmp_path / "store")
        assert [path for shelf in (tmp_path / "store").iterdir() for path in shelf.glob(".*")] == []
        assert (await later.list()).roots == {"sb-1"}

    run(scenario())


def test_a_root_that_lost_its_manifest_with_the_power_is_swept_away(storage, backend, tmp_path: Path) -> None:
    """Roots do not wait for the disk: no sandbox survives the machine."""

    async def scenario() -> None:
        for name in ("sb-1", "sb-2", "sb-3"):
            (tmp_path / "store" / "roots" / name).mkdir()
        (tmp_path / "store/roots/sb-2/manifest.json").touch()
        (tmp_path / "store/roots/sb-3/manifest.json").write_text('{"artifact": "rfs-1", "lay')
        await storage.create("sb-4", "rfs-1")
        later = backend(tmp_path / "store")
        assert (await later.list()).roots == {"sb-4"}

    run(scenario())


def test_a_failed_snapshot_is_no_snapshot(storage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        await storage.create("sb-1", "rfs-1")
        with monkeypatch.context() as patch:
            patch.setattr("agents.storage.shelf._fill", _fail)
            with pytest.raises(OSError, match="disk full"):
                await storage.snapshot("sb-1", "snap-1")
        assert (await storage.list()).snapshots == frozenset()
        await storage.snapshot("sb-1", "snap-1")

    run(scenario())


def _fail(*_: object) -> None:
    raise OSError("disk full")


@OVERLAY
def test_mounts_outlive_nothing_that_they_should_not(storage, backend, tmp_path: Path, ext4: Path) -> None:
    """After a reboot there are manifests and no mounts: everything is put together again."""

    async def scenario() -> None:
        root = await storage.create("sb-1", "rfs-1")
        (root / "kept").write_text("here")
        from agents.host import syscalls  # noqa: PLC0415  # only here

        syscalls.umount(root)
        syscalls.umount(tmp_path / "store/artifacts/rfs-1/lower")
        later = OverlayRoots(tmp_path / "store")
        assert (await later.create("sb-1", "rfs-1") / "kept").read_text() == "here"

    run(scenario())


@OVERLAY
def test_without_loop_devices_the_artifact_is_unpacked(backend, tmp_path: Path, ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.storage.overlay._can_loop", lambda _: False)

    async def scenario() -> None:
        storage = OverlayRoots(tmp_path / "store")
        await storage.prepare("rfs-1", ext4)
        root = await storage.create("sb-1", "rfs-1")
        assert (root / "srv/lower").read_text() == "of the artifact"
        assert (root / "srv/lower").stat().st_uid == 1000
        await storage.remove("sb-1")
        await storage.forget("rfs-1")

    run(scenario())


def test_a_thing_appears_on_its_shelf_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path, "thing")

        async def make(draft: Path) -> None:
            (draft / "half").touch()
            raise OSError("no")

        with pytest.raises(OSError, match="no"):
            await shelf.add("one", dict, make)

    run(scenario())
    assert list(tmp_path.iterdir()) == []
