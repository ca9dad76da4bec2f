"""Roots that are disks: overlays that lead to each other, frozen by whoever runs on them, and collected when nothing leads there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.storage import qcow2
from agents.storage.all import AllRoots
from agents.storage.copies import CopyRoots
from agents.storage.disks import DiskRoots

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
