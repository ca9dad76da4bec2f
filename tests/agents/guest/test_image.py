"""The guest image: the same bytes from the same input, another version for any other, and nothing half made."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.guest import image, initramfs, kernel, uses

MODULES = {name: name.encode() * 100 for name in (*initramfs.EARLY, *initramfs.LATE)}


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Names, modes and contents of a newc archive, read by other code than what wrote it."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + field[11] - 1].decode()
        start = (at + 110 + field[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (field[1], archive[start : start + field[6]])
        at = (start + field[6] + 3) & ~3


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a kernel of a few bytes, and nobody to fetch another from."""

    async def fetch(package: str, into: Path) -> None:
        put_kernel(into, f"2-of-{package}")

    async def newest() -> str:
        return "linux-image-2-cloud"

    monkeypatch.setattr(kernel, "fetch", fetch)
    monkeypatch.setattr(kernel, "newest", newest)
    put_kernel(tmp_path / "guest" / "kernel-1", "1")
    return tmp_path / "guest"


def put_kernel(directory: Path, version: str) -> None:
    (directory / "modules").mkdir(parents=True)
    (directory / "vmlinuz").write_text(f"kernel {version}")
    (directory / "version").write_text(f"{version}\n")
    (directory / "modules" / "virtio_blk.ko").write_text("module")
    (directory / "wanted").write_text(kernel.WANTED)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent of a few bytes: for tests of what becomes of images."""

    async def compile_nothing(out: Path) -> None:
        await asyncio.to_thread(out.write_bytes, b"agent")

    monkeypatch.setattr(image, "_compile", compile_nothing)


def needs_compiler() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


@pytest.mark.quick
def test_an_initramfs_has_the_agent_as_its_first_process_and_the_modules_in_their_order() -> None:
    found = members(initramfs.build(b"agent", MODULES))
    assert found["init"] == (0o100755, b"agent")
    assert found["modules/early"][1].decode().split() == list(initramfs.EARLY)
    assert found["modules/late"][1].decode().split() == list(initramfs.LATE)
    assert found["modules/virtio.ko"] == (0o100644, MODULES["virtio"])
    assert found["dev/console"][0] == 0o020600


@pytest.mark.quick
def test_what_a_kernel_has_built_in_is_not_asked_for() -> None:
    found = members(initramfs.build(b"agent", {"virtio_blk": b"x"}))
    assert (found["modules/early"][1], found["modules/late"][1]) == (b"", b"virtio_blk\n")


@pytest.mark.quick
def test_the_same_input_gives_the_same_bytes() -> None:
    assert initramfs.build(b"agent", MODULES) == initramfs.build(b"agent", dict(reversed(MODULES.items())))


@pytest.mark.quick
def test_an_image_is_built_once_and_says_which_kernel_and_which_agent_it_has(shelf: Path) -> None:
    needs_compiler()
    made = run(image.ensure(shelf))
    assert made.version == f"1-{image.source_digest()}"
    assert image.current(shelf) == made
    assert made.vmlinuz.read_text() == "kernel 1"
    assert members(made.initrd.read_bytes())["init"][1].startswith(b"\x7fELF")
    before = made.initrd.stat().st_mtime_ns
    assert run(image.ensure(shelf)) == made
    assert made.initrd.stat().st_mtime_ns == before
    assert not [path for path in shelf.iterdir() if path.name.startswith((".image-", ".kernel-", ".current-"))]


@pytest.mark.quick
def test_an_upgrade_is_another_version_beside_the_old_one(shelf: Path) -> None:
    needs_compiler()
    old = run(image.ensure(shelf))
    new = run(image.build(shelf, upgrade=True))
    assert new.version == f"2-of-linux-image-2-cloud-{image.source_digest()}"
    assert image.current(shelf) == new
    assert old.directory.is_dir()
    assert run(image.ensure(shelf)) == new


@pytest.mark.quick
def test_another_program_brings_another_image(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    old = run(image.ensure(shelf))
    monkeypatch.setattr(initramfs, "RECIPE", initramfs.RECIPE + 1)
    assert run(image.ensure(shelf)).version != old.version


@pytest.mark.quick
def test_what_cannot_be_built_leaves_nothing_and_says_why(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    broken = tmp_path / "agent"
    broken.mkdir()
    (broken / "agent.c").write_text("int main(void) { return x; }")
    monkeypatch.setattr(image, "SOURCES", broken)
    with pytest.raises(RuntimeFault) as refusal:
        run(image.ensure(shelf))
    assert refusal.value.code == "guest.build-failed"
    assert image.current(shelf) is None
    assert {path.name for path in shelf.iterdir()} == {".lock", "kernel-1"}


@pytest.mark.quick
@pytest.mark.usefixtures("uncompiled")
def test_a_kernel_that_was_fetched_without_a_module_that_is_needed_now_is_fetched_again(shelf: Path) -> None:
    (shelf / "kernel-1" / "wanted").write_text("virtio\n")
    assert run(image.ensure(shelf)).version.startswith("2-of-linux-image-2-cloud-")


@pytest.mark.quick
@pytest.mark.usefixtures("uncompiled")
def test_a_kernel_of_our_own_stays_when_the_agent_changes(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    (own / "modules").mkdir(parents=True)
    (own / "vmlinuz").write_text("kernel own")
    (own / "version").write_text("9-own\n")
    assert run(image.build(shelf, own_kernel=own)).version.startswith("9-own-")
    monkeypatch.setattr(initramfs, "RECIPE", initramfs.RECIPE + 1)
    made = run(image.ensure(shelf))
    assert (made.version, made.vmlinuz.read_text()) == (f"9-own-{image.source_digest()}", "kernel own")


@pytest.mark.quick
@pytest.mark.usefixtures("uncompiled")
def test_old_images_go_when_no_machine_runs_from_them(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for recipe in range(3):
        monkeypatch.setattr(initramfs, "RECIPE", recipe)
        made.append(run(image.ensure(shelf)).directory)
        base = made[-1] / "bases" / "tcg"
        base.mkdir(parents=True)
        uses.allow(base)
        if recipe == 0:
            machine = uses.hold(base)
            assert machine is not None
    assert all(path.is_dir() for path in made)  # the first is used, the second was the current one until now
    os.close(machine)
    monkeypatch.setattr(initramfs, "RECIPE", 3)
    made.append(run(image.ensure(shelf)).directory)
    assert [path.is_dir() for path in made] == [False, False, True, True]


@pytest.mark.quick
@pytest.mark.usefixtures("uncompiled")
def test_a_saved_boot_that_cannot_say_who_uses_it_stays(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(image.ensure(shelf)).directory
    (first / "bases" / "tcg").mkdir(parents=True)
    for recipe in range(7, 10):
        monkeypatch.setattr(initramfs, "RECIPE", recipe)
        run(image.ensure(shelf))
    assert (first / "bases" / "tcg").is_dir()
