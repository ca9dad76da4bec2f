"""The drivers for a user without rights, again, as ``nobody``: the whole contract of processes, and what differs for microVMs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import guests
from support.guests import GUESTS
from support.unprivileged import NOBODY, REPOSITORY, environment, folder, python, who

from agents.guest import image

PROCESSES = "(bwrap or unshare)"
MACHINES = "vm and (test_microvm or works_on_this_host or outlives or cut_short or stdout_and_stderr)"
"""Those that start, find, read and save QEMU: inside the guest nothing knows who runs it."""


def _guest_of(base: Path) -> Path:
    """The guest image as its own: kernel and initramfs without the boots that root has saved."""
    found = image.current(GUESTS)
    assert found is not None
    own = base / "guest"
    (own / found.version).mkdir(parents=True)
    for file in (found.vmlinuz, found.initrd):
        shutil.copy(file, own / found.version / file.name)
    (own / "current").symlink_to(found.version)
    for path in (own, *own.rglob("*")):
        os.lchown(path, NOBODY, NOBODY)
    return own


@pytest.mark.root
@pytest.mark.parametrize("tests", [PROCESSES, MACHINES], ids=["processes", "machines"])
def test_the_contract_holds_for_a_user_without_rights(tests: str) -> None:
    with folder() as base:
        more = {}
        if tests is MACHINES:
            guests.ready()
            more["STRAND_GUEST_DIR"] = str(_guest_of(base))
        command = [python(), "-m", "pytest", "tests/agents/drivers", "-q", "-p", "no:cacheprovider", f"--basetemp={base}/t", "-k", tests]
        done = subprocess.run(
            command,
            **who(),
            cwd=REPOSITORY,
            env={**environment(base), **more},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
