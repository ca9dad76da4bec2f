"""Burial of orphans: the agent inherits what sandboxes leave behind, and learns how it ended.

Without a subreaper every killed sandbox stays a zombie until PID 1 looks, about two seconds later (reference/runtimes.md §1, rule a).
Nothing is collected that asyncio or ``subprocess`` may be waiting for: a child that this process has made itself is in its own session or
leads one, and in its own pid namespace.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agents.host import processes
from agents.host.syscalls import become_subreaper, is_subreaper

__all__ = ["become_subreaper", "collect", "is_subreaper", "sweep"]

_REMEMBERED: Final = 4096
_END_S: Final = 10.0
_codes: OrderedDict[tuple[int, int], int] = OrderedDict()  # children are the process's, so this is too


def shell_code(status: int) -> int:
    """A wait status as a shell would say it: 128+n for signal n."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def collect(pid: int, started: int) -> int | None:
    """How a process ended: its code, if it was our child and has ended; None when it lives or nobody here can know."""
    if (known := _codes.get((pid, started))) is not None:
        return known
    seen = processes.stat(pid)
    if seen is None or seen.started != started or seen.ppid != os.getpid():
        return None
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if reaped == 0:
        return None
    return _remember(pid, started, shell_code(status))


async def kill_marked(mark: Mapping[str, str], directory: Path) -> None:
    """Kill and collect what a cut-off start has left, with its descendants.

    That is what was started with the variable ``mark`` in its environment, and what holds a file open in ``directory``, the start's own:
    a child of a killed agent that had not come to its ``execve`` yet has the agent's environment, but a copy of the agent's descriptors.
    So a start keeps one open there, from before it forks until its program runs.
    """
    [variable] = [f"{name}={value}".encode() for name, value in mark.items()]
    found: dict[int, int] = {}

    def find() -> set[int]:
        def left(pid: int) -> bool:
            return processes.carries(pid, variable) or (pid != os.getpid() and processes.holds(pid, place))

        place = str(directory.resolve())
        family = processes.family(processes.pids(), left)
        found.update({pid: seen.started for pid in family if (seen := processes.stat(pid)) is not None})
        return family

    await processes.kill_all(find)
    for pid, started in found.items():
        await processes.ended(pid, started, _END_S)
        collect(pid, started)


def sweep() -> int:
    """Collect every dead orphan out of a sandbox. To be called now and then, and after a kill. Returns how many there were."""
    buried = 0
    for pid in processes.children(os.getpid()):
        seen = processes.stat(pid)
        if seen is not None and seen.state == "Z" and _inherited(seen) and collect(pid, seen.started) is not None:
            buried += 1
    return buried


def _inherited(seen: processes.Stat) -> bool:
    """Whether a child was made by somebody else, and came to us when its parent died."""
    return seen.session not in (seen.pid, os.getsid(0)) or processes.nested(seen.pid)


def _remember(pid: int, started: int, code: int) -> int:
    _codes[pid, started] = code
    while len(_codes) > _REMEMBERED:
        _codes.popitem(last=False)
    return code
