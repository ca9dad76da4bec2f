"""What machines cost the host, without asking their guests: QEMU's control group, or its process (reference/miren-sandbox.md §12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.drivers.driver import MAIN, Handle
from agents.host import counters, processes


def sample(handles: Sequence[Handle]) -> Mapping[str, Mapping[str, counters.Counters]]:
    """As ``CanSample`` says. Where groups count no processor time (``cpuacct`` is none of those that bound a machine) its process does."""
    groups = {handle.sandbox_id: handle.state["cgroup"] for handle in handles if handle.state.get("cgroup")}
    seen = counters.of_groups(groups.values())
    grouped = {sandbox_id: seen[group] for sandbox_id, group in groups.items() if group in seen}
    bare = {handle.sandbox_id: handle.state["pid"] for handle in handles if handle.sandbox_id not in grouped and _lives(handle)}
    return {sandbox_id: {MAIN: one} for sandbox_id, one in (grouped | counters.of_processes(bare)).items()}


def _lives(handle: Handle) -> bool:
    return handle.state["boot"] == processes.boot_id() and processes.alive(handle.state["pid"], handle.state["started"])
