"""Which QEMU machines run under: the minimal one that ``scripts/guest-qemu`` builds, where there is one, else the distribution's.

What was saved by one of them goes on under that one only (reference/runtimes.md §11), so both stay of use.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.drivers.driver import RuntimeFault
from agents.host import spawn

NAME: Final = "qemu-system-x86_64"
_OWN: Final = Path("qemu", NAME)
"""Where the minimal one is, beside the guest images."""
_SAYS: Final = "QEMU emulator version "

_known: dict[str, tuple[float, str]] = {}
"""Of a path: when its file was changed last, and what that one said of itself."""


@dataclass(frozen=True, slots=True)
class Program:
    """``version``: its own and that of the build, so that no two that differ have the same."""

    path: str
    version: str


async def installed(shelf: Path) -> list[Program]:
    """Those that are here, the one for new machines first. Raises ``vm.no-qemu`` when none is."""
    found = [Program(path, await _version(path)) for path in _paths(shelf)]
    if not found:
        raise absent()
    return found


def path_of(version: str) -> str:
    """Where the one of that version is, which ``installed`` has found. Raises ``vm.no-qemu``."""
    for path, (_, said) in _known.items():
        if said == version and os.access(path, os.X_OK):
            return path
    raise absent(version)


def absent(version: str = "") -> RuntimeFault:
    """What to raise for the program that is missing."""
    return RuntimeFault("vm.no-qemu", f"{NAME} {version}".strip() + " is not installed (apt-get install qemu-system-x86)")


def _paths(shelf: Path) -> Iterator[str]:
    if os.access(shelf / _OWN, os.X_OK):
        yield str(shelf / _OWN)
    if (path := shutil.which(NAME, path=spawn.HOST_ENV["PATH"])) is not None:
        yield path


async def _version(path: str) -> str:
    changed = os.stat(path).st_mtime  # noqa: PTH116 - of a name that was just found
    if path not in _known or _known[path][0] != changed:
        said = (await spawn.run([path, "--version"])).stdout.decode(errors="replace")
        version = said.splitlines()[0].removeprefix(_SAYS).strip() if said.startswith(_SAYS) else "unknown"
        _known[path] = changed, version
    return _known[path][1]
