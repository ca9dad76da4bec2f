"""Processes of an installation whose ``strandline up`` was killed: they go on without anybody who would start or stop them.

They are found by their command lines, which name the installation's directory, and not by ``connect.json``: that may be a moment old.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

DRAIN_S: Final = 15.0
"""How long SIGTERM is given."""
_LOOK_S: Final = 0.02
_PARTS: Final = frozenset({"agents", "handlers", "projections"})


def end_orphans(directory: Path) -> int:
    """End them, the bus last: the others still have something to say. Returns how many there were."""
    found = set(_find(directory))
    bus = {pid for pid in found if _is_bus(directory, _arguments(pid))}
    for group in (found - bus, bus):
        _end(directory, group)
    return len(found)


def _find(directory: Path) -> Iterator[int]:
    """Pids of this user's processes that belong to ``directory``."""
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        arguments = _arguments(pid)
        if pid != os.getpid() and (_is_part(directory, arguments) or _is_bus(directory, arguments)):
            yield pid


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def _is_part(directory: Path, arguments: list[str]) -> bool:
    """``python -m agents|handlers|projections --dir DIRECTORY …``, as the supervisor starts them; no purge."""
    said = set(pairwise(arguments))
    ours = any(("-m", part) in said for part in _PARTS)
    return ours and ("--dir", str(directory)) in said and "--purge" not in arguments


def _is_bus(directory: Path, arguments: list[str]) -> bool:
    """``nats-server -c DIRECTORY/nats/nats.conf``."""
    return arguments[0].endswith("nats-server") and str(directory / "nats" / "nats.conf") in arguments


def _end(directory: Path, pids: set[int]) -> None:
    for number, seconds in ((signal.SIGTERM, DRAIN_S), (signal.SIGKILL, DRAIN_S)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while (pids := pids & set(_find(directory))) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
