"""What a control group bounds its processes to, as the kernel says it."""

from __future__ import annotations

from agents.drivers.driver import Limits
from agents.host import cgroups


def limits(group: cgroups.Cgroup) -> Limits:
    if cgroups.layout() is cgroups.Layout.V2:
        quota = group._file("", "cpu.max").read_text().split()[0]
        memory, pids = group._number("", "memory.max"), group._number("", "pids.max")
    else:
        quota = str(group._number("cpu", "cpu.cfs_quota_us"))
        memory, pids = group._number("memory", "memory.limit_in_bytes"), group._number("pids", "pids.max")
    return Limits(int(quota) / cgroups.PERIOD_US, memory >> 20, pids)
