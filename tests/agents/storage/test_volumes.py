"""Contract: disks of a node, as images with a file system of their own, and as directories where the agent has no rights."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waiting import eventually, run

from agents.drivers.driver import RuntimeFault
from agents.host import loop, syscalls
from agents.volumes import filesystems, mounts
from agents.volumes.store import Volumes
from domain.kernel.errors import Refused

VOL, OTHER = "vol-" + "a" * 24, "vol-" + "b" * 24
A, B = "sb-a", "sb-b"
KINDS = {"image": "ext4", "directory": None}
IMAGE = pytest.mark.parametrize("kind", [pytest.param("image", marks=pytest.mark.root)])
DIRECTORY = pytest.mark.parametrize("kind", ["directory"])
BOTH = pytest.mark.parametrize("kind", [pytest.param("image", marks=pytest.mark.root), "directory"])

Opened = Callable[[], Volumes]


@pytest.fixture
def again(tmp_path: Path, kind: str):
    """The volumes as the next agent process finds them. Nothing stays mounted.

    Shared as an agent's directory is (``agents/drivers/hostns.py``): what is unmounted here goes everywhere, also where others have come
    to it by a namespace of their own.
    """
    directory = tmp_path / "volumes"
    directory.mkdir()
    if kind == "image":
        syscalls.mount(str(directory), directory, "", syscalls.MS_BIND)
        syscalls.mount("none", directory, "", syscalls.MS_SHARED)
    yield lambda: Volumes(directory, kind)
    run(Volumes(directory, kind).close_all())
    if kind == "image":
        syscalls.umount(directory)


async def made(again: Opened, kind: str, volume: str = VOL, size_mb: int = 16) -> Volumes:
    volumes = again()
    await volumes.create(volume, size_mb, KINDS[kind])
    return volumes


def devices(tmp_path: Path, volume: str = VOL) -> list[str]:
    return loop.devices_of(tmp_path / "volumes" / volume / "image")


@BOTH
def test_what_is_written_is_there_for_the_next_one(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        (volumes.place(VOL) / "kept").write_text("here")
        assert stat.S_IMODE(volumes.place(VOL).stat().st_mode) == 0o777, "whoever it is for"
        volumes.place(VOL).chmod(0o700)
        await volumes.detach(A)
        assert volumes.holders() == {}
        await volumes.attach(VOL, B, 2)
        assert (volumes.place(VOL) / "kept").read_text() == "here"
        assert stat.S_IMODE(volumes.place(VOL).stat().st_mode) == 0o700, "as its users have left it"

    run(scenario())


@BOTH
def test_one_sandbox_has_it_at_a_time_and_only_under_the_newest_lease(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 2)
        await volumes.attach(VOL, A, 2)
        for sandbox, epoch, code in ((B, 3, "disk.busy"), (B, 2, "disk.stale-lease"), (A, 1, "disk.stale-lease")):
            with pytest.raises(Refused) as caught:
                await volumes.attach(VOL, sandbox, epoch)
            assert caught.value.code == code
        with pytest.raises(RuntimeFault, match="has it mounted"):
            await volumes.remove(VOL)
        await volumes.detach(B)
        assert volumes.holders() == {A: {VOL}}

    run(scenario())


@BOTH
def test_the_next_agent_knows_who_has_what(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        await (await made(again, kind)).attach(VOL, A, 3)
        later = again()
        assert later.holders() == {A: {VOL}}
        await later.remount(A)
        await later.detach(A)
        with pytest.raises(Refused, match="over"):
            await again().attach(VOL, B, 3)

    run(scenario())


@IMAGE
def test_a_mount_that_is_gone_comes_back_and_is_not_made_twice(again: Opened, kind: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        (before,) = devices(tmp_path)
        await again().remount(A)
        assert devices(tmp_path) == [before]
        held = os.open(volumes.place(VOL), os.O_RDONLY)  # as a sandbox does that lives on while its mount here is taken away
        try:
            syscalls.umount(volumes.place(VOL), syscalls.MNT_DETACH)
            await again().remount(A)
            assert devices(tmp_path) == [before], "a second device of one image would ruin it"
        finally:
            os.close(held)
        assert volumes.place(VOL).is_mount()

    run(scenario())


@IMAGE
def test_detached_means_that_nobody_anywhere_uses_it(again: Opened, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(mounts, "UNMOUNT_S", 0.05)
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        busy = os.open(volumes.place(VOL), os.O_RDONLY)
        try:
            with pytest.raises(RuntimeFault, match="still uses"):
                await volumes.detach(A)
        finally:
            os.close(busy)
        assert volumes.holders() == {A: {VOL}}, "who could not be unmounted still has it"
        await volumes.detach(A)
        assert devices(tmp_path) == []

    run(scenario())


@IMAGE
def test_a_disk_is_full_when_its_size_is_used_up(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        with pytest.raises(OSError, match="No space left"):
            (volumes.place(VOL) / "big").write_bytes(b"x" * (17 << 20))

    run(scenario())


@IMAGE
def test_it_grows_while_nobody_uses_it(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        small = room(volumes)
        (volumes.place(VOL) / "kept").write_text("here")
        await volumes.detach(A)
        await volumes.grow(VOL, 96)
        await volumes.grow(VOL, 96)
        await again().attach(VOL, B, 2)
        assert room(volumes) > small + (64 << 20)
        assert (volumes.place(VOL) / "kept").read_text() == "here"

    run(scenario())


@IMAGE
def test_it_grows_while_it_is_used_or_says_that_this_agent_may_not(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        small = room(volumes)
        if filesystems.grows_mounted("ext4"):
            await volumes.grow(VOL, 48)
            assert room(volumes) > small + (24 << 20)
        else:
            with pytest.raises(RuntimeFault, match="stop the sandbox first"):
                await volumes.grow(VOL, 48)
            assert room(volumes) == small

    run(scenario())


def room(volumes: Volumes) -> int:
    found = os.statvfs(volumes.place(VOL))
    return found.f_blocks * found.f_frsize


@IMAGE
def test_a_snapshot_of_a_disk_in_use_is_whole_and_a_new_disk_can_be_made_of_it(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        (volumes.place(VOL) / "then").write_text("x" * 100_000)
        assert await volumes.snapshot(VOL, "s1") > 100_000
        size = await volumes.snapshot(VOL, "s1")
        (volumes.place(VOL) / "then").write_text("now")
        await volumes.create(OTHER, 64, "ext4", (VOL, "s1"))
        await volumes.attach(OTHER, B, 1)
        assert (volumes.place(OTHER) / "then").read_text() == "x" * 100_000
        assert size > 0
        assert os.statvfs(volumes.place(OTHER)).f_blocks > os.statvfs(volumes.place(VOL)).f_blocks
        await volumes.remove_snapshot(VOL, "s1")
        await volumes.remove_snapshot(VOL, "s1")
        with pytest.raises(RuntimeFault, match="no snapshot s1"):
            await volumes.create("vol-" + "c" * 24, 16, "ext4", (VOL, "s1"))

    run(scenario())


@IMAGE
def test_an_agent_that_died_while_it_copied_leaves_nobody_frozen(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.attach(VOL, A, 1)
        syscalls.freeze(volumes.place(VOL), on=True)
        writing = asyncio.ensure_future(asyncio.to_thread((volumes.place(VOL) / "waits").write_text, "x"))
        again()
        await eventually(writing.done)

    run(scenario())


@DIRECTORY
def test_a_directory_is_kept_only_while_nobody_can_write_to_it(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        (volumes.place(VOL) / "then").write_text("x")
        await volumes.snapshot(VOL, "s1")
        await volumes.attach(VOL, A, 1)
        with pytest.raises(RuntimeFault, match="cannot be frozen"):
            await volumes.snapshot(VOL, "s2")
        await volumes.create(OTHER, 16, None, (VOL, "s1"))
        assert (volumes.place(OTHER) / "then").read_text() == "x"

    run(scenario())


@DIRECTORY
def test_a_node_makes_only_what_it_can(again: Opened, kind: str) -> None:
    async def scenario() -> None:
        volumes = again()
        with pytest.raises(RuntimeFault, match="directories only"):
            await volumes.create(VOL, 16, "ext4")
        assert volumes.holders() == {}
        with pytest.raises(RuntimeFault, match="no disk"):
            await volumes.attach(VOL, A, 1)

    run(scenario())


@BOTH
def test_a_removed_disk_is_gone_with_its_snapshots(again: Opened, kind: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        volumes = await made(again, kind)
        await volumes.snapshot(VOL, "s1")
        await volumes.remove(VOL)
        await volumes.remove(VOL)
        assert not list((tmp_path / "volumes").iterdir())

    run(scenario())
