"""A thousand simulated nodes with fifty thousand sandboxes: what they cost in a steady state, and when a fifth of them falls silent.

The log is written first (``benchmarks/grown.py``); the nodes are heartbeats, one every ten seconds each, from this process. Steady: what
nats-server, control plane and projector together used of two processors in a minute. Then 200 nodes say nothing any more: how long until
the view has all of them offline and their 10,000 sandboxes as not known (40 s of silence are waited for by rule, design.md §6.5), and how
many commands were done in that time beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agents.host import processes
from benchmarks.grown import Grown, grown
from benchmarks.harness import Budget, Row
from benchmarks.machine import resident
from bus import heartbeat
from bus.client import Caller

NODES, EACH = 1_000, 50
LOOK_S, WARM_S, RIGHT_S = 60.0, 15.0, 180.0
CORES = 2
BUDGET = Budget(50, "%")
MIB = 1 << 20
BODY = {"boot": "boot", "used": {"cpu": 1, "memory_mb": 64, "disk_mb": 0, "sandboxes": EACH}, "storage_pct": 10, "orders": 0}


async def run(*, short: bool = False) -> list[Row]:
    nodes, look = (100, 5.0) if short else (NODES, LOOK_S)
    async with grown(nodes * EACH, nodes) as installation, _Beats(installation, nodes).beating() as beats:
        await asyncio.sleep(WARM_S)
        rows = await _steady(installation, look)
        return [*rows, *await _failure(installation, beats, nodes // 5)]


class _Beats:
    """All nodes, spread over the interval; those in ``silent`` say nothing."""

    def __init__(self, installation: Grown, nodes: int) -> None:
        self._nc = installation.nc
        self._nodes = [f"node-{number + 1}" for number in range(nodes)]
        self.silent: frozenset[str] = frozenset()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[_Beats]:
        await asyncio.gather(*(heartbeat.beat(self._nc, node, BODY) for node in self._nodes))
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            for number, node in enumerate(self._nodes):
                if node not in self.silent:
                    await heartbeat.beat(self._nc, node, BODY)
                due = began + heartbeat.BEAT_S * (number + 1) / len(self._nodes)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    @property
    def living(self) -> list[str]:
        return [node for node in self._nodes if node not in self.silent]

    def fall_silent(self, count: int) -> frozenset[str]:
        self.silent = frozenset(self._nodes[:count])
        return self.silent


def _used(pids: dict[str, int]) -> dict[str, float]:
    return {name: seen.cpu_s for name, pid in pids.items() if (seen := processes.stat(pid)) is not None}


async def _steady(installation: Grown, look: float) -> list[Row]:
    before = _used(installation.pids)
    await asyncio.sleep(look)
    after = _used(installation.pids)
    share = {name: (after[name] - before[name]) / (look * CORES) * 100 for name in before}
    each = ", ".join(f"{name} {value:.1f}" for name, value in share.items())
    held = ", ".join(f"{name} {resident(pid) / MIB:.0f}" for name, pid in installation.pids.items())
    total = sum(share.values())
    return [
        Row("steady state, of two processors", f"{total:.1f} %", each, total, "%", BUDGET),
        Row("steady state, RSS in MiB", held),
    ]


async def _failure(installation: Grown, beats: _Beats, count: int) -> list[Row]:
    caller, done = Caller(installation.nc), [0]
    commands = [asyncio.create_task(_commanding(caller, node, done)) for node in beats.living[-4:]]
    silent, began = beats.fall_silent(count), time.monotonic()
    offline = await _until(caller, "nodes", {"status": "offline"}, len(silent), began)
    unknown = await _until(caller, "sandboxes", {"known": False}, len(silent) * EACH, began)
    rate = done[0] / unknown
    for task in commands:
        task.cancel()
    await asyncio.gather(*commands, return_exceptions=True)
    return [
        Row(f"{count} nodes silent: all offline in the view", f"{offline:.1f} s", f"{heartbeat.DEAD_S:g} s of silence first"),
        Row(f"their {len(silent) * EACH:,} sandboxes unknown in the view", f"{unknown:.1f} s"),
        Row("commands done meanwhile, 4 at a time", f"{rate:.0f}/s"),
    ]


async def _commanding(caller: Caller, node: str, done: list[int]) -> None:
    """One node is cordoned and opened again, for ever."""
    while True:
        for verb in ("cordon", "uncordon"):
            with contextlib.suppress(TimeoutError):
                await caller.command("default", f"node.{verb}", {"node_id": node})
                done[0] += 1


async def _until(caller: Caller, view: str, filters: dict[str, Any], count: int, began: float) -> float:
    """Seconds until so many are in the view."""
    while await _count(caller, view, filters) < count:
        assert time.monotonic() - began < RIGHT_S, (view, filters)
        await asyncio.sleep(0.25)
    return time.monotonic() - began


async def _count(caller: Caller, view: str, filters: dict[str, Any]) -> int:
    found, cursor = 0, None
    while True:
        page = await caller.query("default", view, "list", {**filters, "limit": 1000, **({"cursor": cursor} if cursor else {})})
        found += len(page["items"])
        if (cursor := page.get("cursor")) is None:
            return found
