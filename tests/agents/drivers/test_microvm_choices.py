"""What the driver of microVMs chooses for a host: under which QEMU machines run, and how many of them wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.drivers.microvm import programs
from agents.drivers.microvm.pool import size_wanted
from agents.host import spawn


@pytest.mark.parametrize(("said", "memory_mb", "size"), [("", 1024, 0), ("", 4096, 1), ("0", 65536, 0), ("3", 512, 3)])
def test_a_machine_waits_where_nobody_misses_its_memory_unless_the_operator_says_how_many(
    said: str, memory_mb: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRAND_VM_WAITING", said)
    assert size_wanted(memory_mb) == size


def qemu(file: Path, version: str) -> Path:
    """A program that says that it is a QEMU of that version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\necho Copyright\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that programs of the host are looked for in, and what a shell needs."""
    folder = tmp_path / "host"
    folder.mkdir()
    monkeypatch.setitem(spawn.HOST_ENV, "PATH", str(folder))
    return folder


def test_new_machines_run_under_the_qemu_that_was_built_for_them_and_saved_ones_under_theirs(tmp_path: Path, host: Path) -> None:
    packaged = qemu(host / programs.NAME, "7.2.22 (Debian)")
    assert run(programs.installed(tmp_path)) == [programs.Program(str(packaged), "7.2.22 (Debian)")]
    own = qemu(tmp_path / "qemu" / programs.NAME, "7.2.22 (Debian, own 1)")
    assert [found.path for found in run(programs.installed(tmp_path))] == [str(own), str(packaged)]
    assert programs.path_of("7.2.22 (Debian)") == str(packaged)
    assert programs.path_of("7.2.22 (Debian, own 1)") == str(own)


def test_a_qemu_that_was_replaced_is_asked_again(tmp_path: Path, host: Path) -> None:
    file = qemu(host / programs.NAME, "1")
    run(programs.installed(tmp_path))
    qemu(file, "2")
    os.utime(file, (0, 0))
    assert [found.version for found in run(programs.installed(tmp_path))] == ["2"]
    with pytest.raises(RuntimeFault):
        programs.path_of("1")


def test_a_host_without_qemu_is_told_what_to_install(tmp_path: Path, host: Path) -> None:
    assert not list(host.iterdir())
    for ask in (lambda: run(programs.installed(tmp_path)), lambda: programs.path_of("0.0")):
        with pytest.raises(RuntimeFault, match="apt-get install qemu-system-x86") as refusal:
            ask()
        assert refusal.value.code == "vm.no-qemu"
