"""Snapshots as chunks: what goes to the store, what comes back on another node, and what damaged or hostile chunks cannot do."""

# ruff: noqa: PTH115, PTH118 - paths are bytes here

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
from support.local_node import SharedChunks
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.storage import packing
from agents.storage.unpacking import Unpacker, read_index
from agents.vault import Vault
from domain.kernel.errors import Refused

SNAP, MORE = "snap-1", "snap-2"


def written(root: Path) -> None:
    """Changes of every kind: new, replaced, removed, many names, holes, attributes."""
    (root / "srv/lower").unlink()
    shutil.rmtree(root / "srv/deep")
    (root / "srv/deep").mkdir(mode=0o750)
    (root / "srv/deep/only").write_text("this")
    (root / "data").mkdir(mode=0o1777)
    (root / "data/big").write_bytes(random.Random(1).randbytes(3 * packing.PIECE + 5))
    (root / "data/empty").touch(mode=0o600)
    (root / os.fsdecode(b"data/na\xff\nme")).symlink_to("nowhere")
    os.link(root / "data/big", root / "data/again")
    with (root / "data/holes").open("wb") as file:
        file.truncate(5 * packing.PIECE)
    os.setxattr(root / "data/big", "user.colour", b"blue\0\xff")
    os.mkfifo(root / "data/pipe", 0o640)
    os.utime(root / "data/big", ns=(1, 1_600_000_000_123_456_789))
    for n in range(200):
        (root / f"data/small-{n}").write_text(f"content {n}" * 20)


def told(root: Path) -> dict[str, tuple]:
    """Everything that can be said of a tree."""
    found = {}
    for directory, folders, files in os.walk(os.fsencode(root)):
        for name in (b".", *folders, *files):
            path = os.path.join(directory, name)
            seen, kind = os.lstat(path), stat.S_IFMT(os.lstat(path).st_mode)
            data = b""
            if kind == stat.S_IFREG:
                data = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
            elif kind == stat.S_IFLNK:
                data = os.readlink(path)
            about = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_nlink if kind == stat.S_IFREG else 0, data)
            colour = [n for n in os.listxattr(path, follow_symlinks=False) if n.startswith("user.")]
            found[os.path.normpath(os.path.relpath(path, os.fsencode(root)))] = (*about, colour, kind == stat.S_IFREG and seen.st_mtime_ns)
    return found


@pytest.fixture
def elsewhere(backend, tmp_path: Path, ext4: Path):
    """Another node's storage, with the same artifact."""
    made = backend(tmp_path / "elsewhere")
    run(made.prepare("rfs-1", ext4))
    yield made

    async def clear() -> None:
        for name in (await made.list()).roots:
            await made.remove(name)
        for name in (await made.list()).snapshots:
            await made.remove_snapshot(name)
        await made.forget("rfs-1")

    run(clear())


def test_a_snapshot_is_the_same_on_another_node(storage, elsewhere) -> None:
    async def scenario() -> None:
        vault = Vault(SharedChunks().chunks())
        root = await storage.create("sb-1", "rfs-1")
        written(root)
        await storage.snapshot("sb-1", SNAP)
        sent = await vault.send(storage, "default", SNAP)
        assert (sent.kind, sent.chunks) == (storage.kind, sent.moved_chunks)
        await vault.ensure(elsewhere, "default", SNAP, "rfs-1", sent.manifest)
        there = await elsewhere.create("sb-2", "rfs-1", SNAP)
        assert told(there) == told(await storage.create("sb-3", "rfs-1", SNAP))
        assert (there / "data/holes").stat().st_blocks == 0
        await vault.ensure(elsewhere, "default", SNAP, "rfs-1", sent.manifest)

    run(scenario())


def test_snapshots_over_snapshots_come_with_all_that_is_below_them(storage, elsewhere) -> None:
    async def scenario() -> None:
        vault = Vault(SharedChunks().chunks())
        root = await storage.create("sb-1", "rfs-1")
        (root / "one").write_text("1")
        (root / "gone").write_text("later")
        await storage.snapshot("sb-1", SNAP)
        over = await storage.create("sb-2", "rfs-1", SNAP)
        (over / "two").write_text("2")
        (over / "gone").unlink()
        (over / "srv/lower").unlink()
        await storage.snapshot("sb-2", MORE)
        sent = await vault.send(storage, "default", MORE)
        await vault.ensure(elsewhere, "default", MORE, "rfs-1", sent.manifest)
        there = await elsewhere.create("sb-3", "rfs-1", MORE)
        assert told(there) == told(await storage.create("sb-4", "rfs-1", MORE))
        assert not (there / "gone").exists()
        assert not (there / "srv/lower").exists()

    run(scenario())


def test_what_two_snapshots_share_is_stored_once(storage) -> None:
    async def scenario() -> None:
        shared = SharedChunks()
        vault = Vault(shared.chunks())
        root = await storage.create("sb-1", "rfs-1")
        written(root)
        await storage.snapshot("sb-1", SNAP)
        await vault.send(storage, "default", SNAP)
        before = sum(map(len, shared.contents.values()))
        with (root / "data/big").open("r+b") as file:
            file.write(b"changed")
        (root / "data/small-77").write_text("other")
        await storage.snapshot("sb-1", MORE)
        sent = await vault.send(storage, "default", MORE)
        assert sent.moved_bytes < before / 2
        assert sent.moved_chunks <= 4, "the large file's first piece, a pack or two, the index"
        again = await vault.send(storage, "default", MORE)
        assert (again.manifest, again.moved_chunks, again.moved_bytes) == (sent.manifest, 0, 0)

    run(scenario())


def test_half_a_snapshot_is_none(storage, elsewhere) -> None:
    async def scenario() -> None:
        shared = SharedChunks()
        vault = Vault(shared.chunks())
        root = await storage.create("sb-1", "rfs-1")
        written(root)
        await storage.snapshot("sb-1", SNAP)
        sent = await vault.send(storage, "default", SNAP)
        lost = next(digest for digest in shared.contents if len(shared.contents[digest]) == packing.PIECE)
        content = shared.contents.pop(lost)
        with pytest.raises(Refused) as refused:
            await vault.ensure(elsewhere, "default", SNAP, "rfs-1", sent.manifest)
        assert (refused.value.code, refused.value.details) == ("object.not-found", {"chunk": lost})
        assert (await elsewhere.list()).snapshots == frozenset()
        with pytest.raises(RuntimeFault) as missing:
            await elsewhere.create("sb-2", "rfs-1", SNAP)
        assert missing.value.code == "snapshot.not-found"
        shared.contents[lost] = content
        await vault.ensure(elsewhere, "default", SNAP, "rfs-1", sent.manifest)

    run(scenario())


def test_a_snapshot_of_another_kind_of_storage_is_refused(storage) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refused:
            await storage.receive(SNAP, "rfs-1", "another", 1, None)
        assert refused.value.code == "snapshot.foreign-kind"

    run(scenario())


DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
ROOT = {"p": ".", "m": DIRECTORY, "u": 0, "g": 0, "t": 0}


def entry(path: str, mode: int = FILE, **more) -> dict:
    return {**ROOT, "p": path, "m": mode, **({"s": 0, "c": []} if mode == FILE else {}), **more}


@pytest.mark.quick
@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry("x")],
        [ROOT, entry("../x")],
        [ROOT, entry("/etc/x")],
        [ROOT, entry("..", DIRECTORY)],
        [ROOT, entry("a/../../x")],
        [ROOT, entry("way", LINK, l="/etc"), entry("way/x")],
        [ROOT, entry("way", LINK, l="/etc"), entry("way", DIRECTORY)],
        [ROOT, entry("x", h="/etc/passwd")],
        [ROOT, entry("x\0y")],
        [ROOT, {"m": FILE}],
    ],
)
def test_an_index_that_reaches_out_of_its_tree_is_not_followed(entries) -> None:
    with pytest.raises(RuntimeFault) as refused:
        read_index(packing.Packed(entries=[entries]).index())
    assert refused.value.code == "snapshot.unreadable"


@pytest.mark.quick
def test_a_file_gets_no_more_than_it_says(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    maker = Unpacker(tree, [ROOT, entry("x", s=3, c=[[0, 0, 3]])])
    maker.begin()
    maker.piece(0, b"abcdef")
    maker.finish()
    assert (tree / "x").read_bytes() == b"abc"
