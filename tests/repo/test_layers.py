"""Imports go the way that .importlinter says, and it says what ARCHITECTURE.md draws."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from repo.tree import ROOT, python

pytestmark = pytest.mark.quick

CONFIG = ROOT / ".importlinter"


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    return subprocess.run(
        [*argv, "--config", str(config), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_import_contract_is_kept() -> None:
    found = lint(CONFIG)
    contracts = sum(1 for line in CONFIG.read_text().splitlines() if line.startswith("[importlinter:contract:"))
    assert f"Contracts: {contracts} kept, 0 broken." in found.stdout, found.stdout + found.stderr
    assert found.returncode == 0


def test_an_arrow_against_the_layers_is_noticed(tmp_path: Path) -> None:
    """The linter really reads this tree: with the layers upside down it finds what it must find."""
    upside_down = tmp_path / ".importlinter"
    upside_down.write_text(
        "[importlinter]\nroot_packages =\n    domain\n    bus\n\n"
        "[importlinter:contract:wrong]\nname = Wrong\ntype = layers\nlayers =\n    domain\n    bus\n"
    )
    found = lint(upside_down)
    assert found.returncode == 1
    assert "Contracts: 0 kept, 1 broken." in found.stdout


def test_every_package_is_under_the_contracts() -> None:
    config = configparser.ConfigParser()
    config.read(CONFIG)
    roots = set(config["importlinter"]["root_packages"].split())
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"scripts", "benchmarks", "tests"}
    assert packages == roots, "a new package has to be given its place in .importlinter"


def test_the_domain_reads_no_clock() -> None:
    """``datetime.now`` needs no import that a contract could forbid."""
    for path in python("domain"):
        text = path.read_text(encoding="utf-8")
        assert not any(call in text for call in (".now(", ".utcnow(", ".today(", "uuid4(", "random")), path
