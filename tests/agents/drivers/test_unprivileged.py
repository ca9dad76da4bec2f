"""The process driver for a user without rights: its whole contract, again, as ``nobody``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
NOBODY = 65534


def _python() -> str | None:
    """An interpreter that ``nobody`` can execute and that the installed packages fit."""
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        try:
            done = subprocess.run([candidate, "-c", ""], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return None


@pytest.mark.root
def test_the_contract_holds_for_a_user_without_rights() -> None:
    python = _python()
    if python is None:
        pytest.skip("no interpreter that another user may execute")
    base = Path(f"/tmp/strandline-nobody-{os.getpid()}")
    base.mkdir(mode=0o700)
    os.chown(base, NOBODY, NOBODY)
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    command = [
        python,
        "-m",
        "pytest",
        "tests/agents/drivers",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={base}/t",
        "-k",
        "(bwrap or unshare)",
    ]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPOSITORY}:{packages}", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(base)}
    try:
        done = subprocess.run(
            command,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
