"""What `make` does on other machines than ours: bare ones, without rights, without apt. The programs it calls are stand-ins that tell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repo.tree import ROOT
from support.unprivileged import NOBODY

pytestmark = pytest.mark.quick


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH on which there is a shell's least, and an apt-get that says what it was asked for."""
    for program in ("sh", "tr", "id", "printf", "env", "cat", "touch", "sed"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ ! -e {tmp_path}/no-network ]\n')
    apt.chmod(0o755)
    return tmp_path


def install(bare: Path, *words: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    """The script as the Makefile calls it, by root or by somebody else: ``id`` says who."""
    (bare / "id").unlink()
    (bare / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (bare / "id").chmod(0o755)
    code = "import sys; from strandline import host_packages as h; h.SBIN = (); sys.exit(h.main())"
    python = bare / "python3"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "{code}" "$@"\n')
    python.chmod(0o755)
    command = ["sh", "scripts/install-packages", *words]
    env = {"PATH": str(bare), "PYTHON": str(python)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)


def asked(bare: Path) -> str:
    return (bare / "asked").read_text() if (bare / "asked").exists() else ""


def test_root_gets_what_the_demo_and_its_better_driver_need(bare: Path) -> None:
    assert install(bare, "--optional", "demo", "oci").returncode == 0
    assert {"crun", "nftables", "bubblewrap", "e2fsprogs"} <= set(asked(bare).split())
    assert "skopeo" not in asked(bare)


def test_what_is_optional_does_not_stop_who_cannot_install_it(bare: Path) -> None:
    (bare / "no-network").touch()
    done = install(bare, "--optional", "oci")
    assert done.returncode == 0
    assert "could not be installed: " in done.stderr
    assert install(bare, "tests").returncode != 0
    (bare / "apt-get").unlink()
    assert install(bare, "--optional", "oci").returncode == 0


def test_without_root_nothing_is_installed_and_the_command_for_root_is_said(bare: Path) -> None:
    done = install(bare, "tests", uid=NOBODY)
    assert done.returncode == 0
    assert "as root: apt-get install -y --no-install-recommends " in done.stderr
    assert asked(bare) == ""


def test_the_demo_asks_for_packages_only_as_root() -> None:
    said = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    (line,) = [line for line in said.splitlines() if "install-packages" in line]
    assert line.startswith('[ "$(id -u)" != 0 ] || ')
    assert line.endswith("scripts/install-packages --optional demo oci")
    assert said.index(line) < said.index("strandline demo")
