"""The host's own programs: where they are, and how to run one so that it can be stopped.

``mke2fs`` and its relatives live in ``/sbin``, which an ordinary user's ``PATH`` lacks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.images.blocking import Stop
from agents.images.faults import ImageFault

_ALSO: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_MENDS: Final[Mapping[str, str]] = {
    "mke2fs": "apt-get install e2fsprogs",
    "debugfs": "apt-get install e2fsprogs",
    "zstd": "apt-get install zstd",
    "ldd": "apt-get install libc-bin",
}
_POLL_S: Final = 0.1
_TAIL: Final = 600


def find(name: str) -> str:
    """The program's path. Raises ``host.missing-tool`` with the command that mends it."""
    where = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ALSO])
    if found := shutil.which(name, path=where):
        return found
    mend = _MENDS.get(name, f"apt-get install {name}")
    raise ImageFault("host.missing-tool", f"{name} is not installed here; `{mend}` mends it", details={"tool": name, "mend": mend})


def run(
    argv: Sequence[str], stop: Stop, *, cwd: Path, env: Mapping[str, str], meanwhile: Callable[[], None] = lambda: None
) -> tuple[int, str, str]:
    """Run to the end: exit code, stdout, stderr. ``meanwhile`` is called while waiting. Killed when ``stop`` is set."""
    process = subprocess.Popen(  # noqa: S603 - argv is ours, and no shell sees it
        [find(argv[0]), *argv[1:]],
        cwd=cwd,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        while True:
            try:
                out, err = process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                stop.check()
                meanwhile()
            else:
                return process.returncode, out, err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def tail(text: str) -> str:
    """The end of a program's complaint, on one line."""
    return " ".join(text.split())[-_TAIL:]
