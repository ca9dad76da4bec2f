"""A run by root skips nothing without anybody noticing; any run counts what it skipped, by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from repo.tree import ROOT
from support import privileges, unprivileged

pytestmark = pytest.mark.quick

TESTS = """\
import pytest

def test_that_runs(): ...

@pytest.mark.skip(reason="crun is not installed")
def test_that_does_not(): ...
"""
PLUGIN = """\
from support import privileges
privileges.ROOT = {root}

def pytest_sessionfinish(session): privileges.fail_on_skips(session)
def pytest_terminal_summary(terminalreporter): privileges.tell(terminalreporter)
"""


@pytest.mark.parametrize(("root", "code"), [(True, 1), (False, 0)])
def test_a_skip_fails_the_run_of_root_and_is_counted_for_everybody(tmp_path: Path, root: bool, code: int) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(PLUGIN.format(root=root))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}", str(tmp_path)]
    env = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "test_some.py::test_that_does_not\n1 skipped: crun is not installed" in done.stdout
    assert ("root skips nothing" in done.stdout) is root


def test_only_named_reasons_are_allowed_to_root() -> None:
    allowed = {unprivileged.NO_PYTHON: ["a"], "no access control lists here: [Errno 95]": ["b"]}
    assert privileges.forbidden(allowed, root=True) == []
    assert privileges.forbidden({**allowed, "needs skopeo": ["c"]}, root=True) == ["needs skopeo"]
    assert privileges.forbidden({"needs skopeo": ["c"]}, root=False) == []
