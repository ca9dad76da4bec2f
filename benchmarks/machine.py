"""The conditions of a run: the machine, its load, and the versions of everything that is measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from bus.server import find_binary

PACKAGES = ("nats-py", "uvloop", "eventsourcing", "pydantic", "orjson")


def conditions() -> list[tuple[str, str]]:
    """Name and value, for the head of every table."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        ("processor", f"{len(os.sched_getaffinity(0))} cores, {_processor()}"),
        ("memory", f"{memory / 2**30:.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("load before", load()),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
        ("programs", ", ".join(filter(None, (_said(find_binary(), "--version"), _said("crun", "--version"), _said("bwrap", "--version"))))),
    ]


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _said(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return ""
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False).stdout.splitlines()[0]


def resident(pid: int) -> int:
    """Bytes of a process that are in memory (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)
