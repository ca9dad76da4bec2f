"""The process driver for a user without rights: its whole contract, again, as ``nobody``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.unprivileged import NOBODY, REPOSITORY, environment, python, who


@pytest.mark.root
def test_the_contract_holds_for_a_user_without_rights() -> None:
    interpreter = python()
    base = Path(f"/tmp/strandline-nobody-{os.getpid()}")
    base.mkdir(mode=0o700)
    os.chown(base, NOBODY, NOBODY)
    command = [
        interpreter,
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
    try:
        done = subprocess.run(
            command,
            **who(),
            cwd=REPOSITORY,
            env=environment(base),
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
