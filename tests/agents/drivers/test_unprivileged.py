"""The ``process`` driver's contract, kept once more without root: its whole suite is run by a user without rights."""

from __future__ import annotations

import subprocess

import pytest
from support.unprivileged import REPOSITORY, environment, folder, python, who


@pytest.mark.root
def test_the_contract_holds_for_a_user_without_rights() -> None:
    with folder() as base:
        command = [python(), "-m", "pytest", "tests/agents/drivers", "-q", "-p", "no:cacheprovider", f"--basetemp={base}/t"]
        done = subprocess.run(
            [*command, "-k", "(bwrap or unshare)"],
            **who(),
            cwd=REPOSITORY,
            env=environment(base),
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
