"""Running things as a user without rights: an interpreter that ``nobody`` can execute, and an environment in which it finds everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
NO_PYTHON = "no interpreter that another user may execute"


def python() -> str:
    """An interpreter that ``nobody`` can execute and that the installed packages fit; skips where there is none."""
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        try:
            done = subprocess.run([candidate, "-c", ""], **who(), capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    pytest.skip(NO_PYTHON)


def who(user: int | None = NOBODY) -> dict[str, object]:
    """For ``subprocess``: that user and no groups; None: whoever we are."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def environment(home: Path) -> dict[str, str]:
    """Nothing of ours but the packages and the programs beside our interpreter."""
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(home),
    }


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that ``nobody`` owns and reaches, which pytest's own are not."""
    base = Path(f"/tmp/strandline-nobody-{os.getpid()}")
    base.mkdir(mode=0o700)
    os.chown(base, NOBODY, NOBODY)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)
