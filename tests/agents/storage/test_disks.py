"""Roots that are disks: overlays that lead to each other, frozen by whoever runs on them, and collected when nothing leads there."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.local_node import SharedChunks
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.storage import qcow2
from agents.storage.all import AllRoots
from agents.storage.copies import CopyRoots
from agents.storage.disks import DiskRoots
from agents.vault import Vault

ART, OTHER = "rfs-1", "rfs-2"


class Machine:
    """Stands for a driver that runs on a disk: freezes it and goes on with another."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.fails = False

    async def snapshot(self, memory: Path, disk: Path) -> Path:
        if self.fails:
            raise RuntimeFault("vm.gone", "told to fail")
        assert qcow2.below(disk) is not None
        (memory / "ram").write_bytes(b"remembered")
        frozen, self.disk = self.disk, disk
        return frozen


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    file = tmp_path / "rootfs.ext4"
    file.write_bytes(b"\0" * (1 << 20))
    return file


@pytest.fixture
def disks(tmp_path: Path, artifact: Path) -> DiskRoots:
    roots = DiskRoots(tmp_path / "disks")
    run(roots.prepare(ART, artifact))
    return roots


def overlays(roots: DiskRoots) -> set[Path]:
    return set((roots.directory / "overlays").iterdir())


@pytest.mark.quick
def test_an_overlay_says_what_lies_below_and_how_big_it_is(tmp_path: Path, artifact: Path) -> None:
    first, second = tmp_path / "a, b.qcow2", tmp_path / "second.qcow2"
    qcow2.create(first, artifact)
    qcow2.create(second, first)
    assert [qcow2.below(path) for path in (second, first, artifact)] == [first, artifact, None]
    assert {qcow2.size_of(path) for path in (second, first, artifact)} == {1 << 20}
    with pytest.raises(FileExistsError):
        qcow2.create(second, first)


@pytest.mark.quick
def test_qemu_finds_nothing_wrong_with_an_overlay(tmp_path: Path, artifact: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    qcow2.create(tmp_path / "first.qcow2", artifact)
    qcow2.create(tmp_path / "second.qcow2", tmp_path / "first.qcow2")
    for command in (["check"], ["compare", str(artifact)]):
        done = subprocess.run(["qemu-img", *command, str(tmp_path / "second.qcow2")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.quick
def test_a_root_lies_over_its_artifact_and_is_the_same_when_asked_again(disks: DiskRoots, artifact: Path) -> None:
    root = run(disks.create("sb-1", ART))
    assert qcow2.below(root) == artifact
    assert run(disks.create("sb-1", ART)) == root
    assert run(disks.list()).roots == {"sb-1"}
    run(disks.remove("sb-1"))
    assert overlays(disks) == set()


@pytest.mark.quick
def test_a_snapshot_freezes_the_disk_and_keeps_it_for_whoever_came_from_it(disks: DiskRoots) -> None:
    root = run(disks.create("sb-1", ART))
    machine = Machine(root)
    size = run(disks.snapshot("sb-1", "snap-1", machine.snapshot))
    assert size > 0
    assert run(disks.snapshot("sb-1", "snap-1", machine.snapshot)) == size
    memory = disks.memory("snap-1")
    assert memory is not None
    assert (memory / "ram").read_bytes() == b"remembered"
    clone = run(disks.create("sb-2", ART, "snap-1"))
    assert (qcow2.below(clone), qcow2.below(machine.disk)) == (root, root)
    run(disks.remove("sb-1"))
    run(disks.remove_snapshot("snap-1"))
    assert run(disks.list()).snapshots == frozenset()
    assert memory.exists()  # the clone's machine maps it
    assert overlays(disks) == {clone, root}
    run(disks.remove("sb-2"))
    assert (memory.exists(), overlays(disks)) == (False, set())


@pytest.mark.quick
def test_a_rollback_leaves_what_was_written_since(disks: DiskRoots) -> None:
    root = run(disks.create("sb-1", ART))
    machine = Machine(root)
    run(disks.snapshot("sb-1", "snap-1", machine.snapshot))
    back = run(disks.rollback("sb-1", "snap-1"))
    assert qcow2.below(back) == root
    assert overlays(disks) == {root, back}
    with pytest.raises(RuntimeFault) as refusal:
        run(disks.rollback("sb-1", "snap-2"))
    assert refusal.value.code == "snapshot.not-found"


@pytest.mark.quick
def test_a_snapshot_that_fails_loses_nothing(disks: DiskRoots) -> None:
    root = run(disks.create("sb-1", ART))
    machine = Machine(root)
    machine.fails = True
    with pytest.raises(RuntimeFault):
        run(disks.snapshot("sb-1", "snap-1", machine.snapshot))
    assert run(disks.list()).snapshots == frozenset()
    machine.fails = False
    run(disks.snapshot("sb-1", "snap-1", machine.snapshot))
    run(disks.remove("sb-2"))
    assert {root, machine.disk} <= overlays(disks)


@pytest.mark.quick
def test_what_nothing_leads_to_is_collected_also_after_a_crash(disks: DiskRoots, artifact: Path) -> None:
    run(disks.create("sb-1", ART))
    qcow2.create(disks.directory / "overlays" / "0123456789abcdef.qcow2", artifact)
    again = DiskRoots(disks.directory)
    run(again.remove("sb-2"))
    assert len(overlays(again)) == 1


@pytest.mark.quick
def test_an_artifact_in_use_is_not_forgotten(disks: DiskRoots) -> None:
    run(disks.create("sb-1", ART))
    with pytest.raises(RuntimeFault) as refusal:
        run(disks.forget(ART))
    assert refusal.value.code == "artifact.in-use"
    with pytest.raises(RuntimeFault) as refusal:
        run(disks.create("sb-1", OTHER))
    assert refusal.value.code == "root.conflict"
    run(disks.remove("sb-1"))
    run(disks.forget(ART))
    assert run(disks.list()).artifacts == frozenset()


@pytest.mark.quick
def test_both_kinds_of_roots_lie_side_by_side(tmp_path: Path, artifact: Path) -> None:
    async def scenario() -> None:
        roots = AllRoots(CopyRoots(tmp_path / "storage"), DiskRoots(tmp_path / "storage" / "disks"))
        await roots.prepare(ART, artifact, disk=True)
        disk = await roots.create("sb-1", ART, disk=True)
        machine = Machine(disk)
        with pytest.raises(RuntimeFault) as refusal:
            await roots.snapshot("sb-1", "snap-1")
        assert refusal.value.code == "root.needs-driver"
        await roots.snapshot("sb-1", "snap-1", machine.snapshot)
        assert roots.memory("snap-1") is not None
        assert roots.memory("snap-2") is None
        assert qcow2.below(await roots.rollback("sb-1", "snap-1")) == disk
        await roots.remove("sb-1")
        await roots.remove_snapshot("snap-1")
        await roots.forget(ART)
        assert await roots.list() == type(await roots.list())(frozenset(), frozenset(), frozenset())

    run(scenario())


def snapped_twice(disks: DiskRoots) -> None:
    """Two snapshots of one sandbox: the second lies over what the first froze."""
    machine = Machine(run(disks.create("sb-1", ART)))
    for name in ("snap-1", "snap-2"):
        run(disks.snapshot("sb-1", name, machine.snapshot))


@pytest.mark.quick
def test_a_disk_with_its_memory_is_the_same_on_another_node(disks: DiskRoots, tmp_path: Path) -> None:
    snapped_twice(disks)
    [memory, chain] = disks.layers("snap-2")[2]
    sent = [path.read_bytes()[1 << 16 :] for path in sorted(chain.iterdir())]
    other = tmp_path / "other.ext4"
    other.write_bytes(b"\0" * (1 << 20))
    elsewhere = DiskRoots(tmp_path / "elsewhere")
    vault = Vault(SharedChunks().chunks())

    async def scenario() -> None:
        stored = await vault.send(AllRoots(CopyRoots(tmp_path / "trees"), disks), "default", "snap-2")
        assert stored.kind == "disks"
        await elsewhere.prepare(ART, other)
        for _ in range(2):  # again is fine
            await vault.ensure(elsewhere, "default", "snap-2", ART, stored.manifest)
        below, seen = qcow2.below(await elsewhere.create("sb-9", ART, "snap-2")), []
        while below not in (other, None):
            seen.insert(0, below.read_bytes()[1 << 16 :])
            assert below.parent == elsewhere.directory / "overlays"
            below = qcow2.below(below)
        assert (below, seen) == (other, sent)
        assert (elsewhere.memory("snap-2") / "ram").read_bytes() == (memory / "ram").read_bytes()
        await elsewhere.remove("sb-9")
        await elsewhere.remove_snapshot("snap-2")
        assert overlays(elsewhere) == set()

    run(scenario())


def points_elsewhere(memory: Path, chain: Path) -> None:
    (memory / "ram").symlink_to("/etc/passwd")
    (chain / "1.qcow2").unlink()


def has_an_external_file(memory: Path, chain: Path) -> None:
    with (chain / "1.qcow2").open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 4))


def is_no_overlay(memory: Path, chain: Path) -> None:
    (chain / "1.qcow2").write_bytes(b"x" * 1000)


def has_no_disk(memory: Path, chain: Path) -> None:
    (chain / "1.qcow2").unlink()


@pytest.mark.quick
@pytest.mark.parametrize("spoil", [points_elsewhere, has_an_external_file, is_no_overlay, has_no_disk], ids=lambda spoil: spoil.__name__)
def test_what_another_node_sent_cannot_reach_for_files_of_this_one(
    disks: DiskRoots, artifact: Path, spoil: Callable[[Path, Path], None]
) -> None:
    async def fill(targets: list[Path]) -> None:
        qcow2.create(targets[1] / "1.qcow2", artifact)
        spoil(*targets)

    with pytest.raises(RuntimeFault) as refusal:
        run(disks.receive("snap-1", ART, "disks", 2, fill))
    assert refusal.value.code == "snapshot.unreadable"
    assert run(disks.list()).snapshots == frozenset()
    run(disks.remove("sb-1"))
    assert overlays(disks) == set()


@pytest.mark.quick
def test_an_overlay_that_came_in_lies_over_this_nodes_artifact_whatever_it_says(disks: DiskRoots, artifact: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * (1 << 20))

    async def fill(targets: list[Path]) -> None:
        qcow2.create(targets[1] / "1.qcow2", secret)

    run(disks.receive("snap-1", ART, "disks", 2, fill))
    [came] = overlays(disks)
    assert qcow2.below(came) == artifact
