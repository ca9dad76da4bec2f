"""What control groups and processes have used, as the kernel counts it: many in one pass, once a second, so nothing here costs a call more.

Control groups in both versions (admin-guide/cgroup-v1/{cpuacct,memory}.rst, admin-guide/cgroup-v2.rst); processes by pid namespace, for
sandboxes that have no group. What a kernel does not count is 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.host import processes
from agents.host.cgroups import MOUNT, Layout, layout

MOST: Final = 4096
"""Bytes of one of these files that are looked at."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one container: microseconds of processor time since it began, ``kernel_us`` of them in the kernel; bytes; processes."""

    cpu_us: int
    kernel_us: int = 0
    memory: int = 0
    peak: int = 0
    swap: int = 0
    swap_peak: int = 0
    pids: int = 0


def of_groups(names: Iterable[str], mount: Path = MOUNT) -> dict[str, Counters]:
    """By name; a group whose processor time or memory cannot be read is left out."""
    read = _read_v2 if layout(mount) is Layout.V2 else _read_v1
    found: dict[str, Counters] = {}
    for name in names:
        with contextlib.suppress(OSError, ValueError, KeyError):
            found[name] = read(str(mount), name)
    return found


def _read_v1(mount: str, name: str) -> Counters:
    cpu, memory = f"{mount}/cpuacct/{name}", f"{mount}/memory/{name}"
    used, peak = _number(f"{memory}/memory.usage_in_bytes"), _number(f"{memory}/memory.max_usage_in_bytes")
    return Counters(
        cpu_us=_number(f"{cpu}/cpuacct.usage") // 1000,
        kernel_us=_optional(f"{cpu}/cpuacct.usage_sys") // 1000,
        memory=used,
        peak=peak,
        swap=max(_optional(f"{memory}/memory.memsw.usage_in_bytes") - used, 0),  # it counts both
        swap_peak=max(_optional(f"{memory}/memory.memsw.max_usage_in_bytes") - peak, 0),
        pids=_optional(f"{mount}/pids/{name}/pids.current"),
    )


def _read_v2(mount: str, name: str) -> Counters:
    group = f"{mount}/{name}"
    cpu = dict(line.split(b" ", 1) for line in _text(f"{group}/cpu.stat").splitlines() if b" " in line)
    return Counters(
        cpu_us=int(cpu[b"usage_usec"]),
        kernel_us=int(cpu.get(b"system_usec", 0)),
        memory=_number(f"{group}/memory.current"),
        peak=_optional(f"{group}/memory.peak"),  # since Linux 5.19
        swap=_optional(f"{group}/memory.swap.current"),
        swap_peak=_optional(f"{group}/memory.swap.peak"),
        pids=_optional(f"{group}/pids.current"),
    )


def _text(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, MOST)
    finally:
        os.close(fd)


def _number(path: str) -> int:
    return int(_text(path))


def _optional(path: str) -> int:
    try:
        return _number(path)
    except (OSError, ValueError):
        return 0


def of_namespaces(wanted: Collection[str]) -> dict[str, Counters]:
    """By pid namespace (``processes.pid_namespace``): all its processes together, from one look at /proc. An empty one is left out.

    A process that ended without being waited for takes its time along, so a sum may shrink.
    """
    found: dict[str, list[processes.Stat]] = {}
    for pid in processes.pids():
        namespace = processes.pid_namespace(pid)
        if namespace in wanted and (seen := processes.stat(pid)) is not None:
            found.setdefault(namespace, []).append(seen)
    return {namespace: _sum(seen) for namespace, seen in found.items()}


def of_processes(pids: Mapping[str, int]) -> dict[str, Counters]:
    """By the name that each pid is given under."""
    seen = {name: processes.stat(pid) for name, pid in pids.items()}
    return {name: _sum([found]) for name, found in seen.items() if found is not None}


def _sum(seen: Collection[processes.Stat]) -> Counters:
    return Counters(cpu_us=round(sum(one.cpu_s for one in seen) * 1e6), memory=sum(one.rss for one in seen), pids=len(seen))
