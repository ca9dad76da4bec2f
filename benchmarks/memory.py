"""Resident memory: an idle agent with 100 simulated sandboxes, and control plane and projector with 10,000 and 100,000 in the log.

The log of that many running sandboxes on 100 nodes is written first; then the product's own processes start on it and are measured when
they serve. Nothing is extrapolated.
"""

from __future__ import annotations

import asyncio

from benchmarks.grown import grown
from benchmarks.harness import Budget, Row, at_once
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from benchmarks.machine import resident

SANDBOXES, FLEETS = 100, (10_000, 100_000)
AGENT, CONTROL = Budget(80, "MiB"), Budget(1536, "MiB")
MIB = 1 << 20
IDLE_S = 3.0


async def run(*, short: bool = False) -> list[Row]:
    nothing = await _processes(0)
    rows = await _agent()
    for count in FLEETS[:1] if short else FLEETS:
        rows += _rows(count, await _processes(count), nothing)
    return rows


async def _agent() -> list[Row]:
    async with installed("sim") as (installation, caller):
        pid = installation.supervisor.children["node-1"].pid
        assert pid is not None
        await template(installation, caller)
        empty = resident(pid) / MIB
        body = {"template": ALIAS, "memory_mb": 16, "cpu": 0.01, "wait_s": WAIT_S}
        await at_once(SANDBOXES, 8, lambda _: caller.command("default", "sandbox.create", body))
        await asyncio.sleep(IDLE_S)
        full = resident(pid) / MIB
    return [Row(f"agent, idle, {SANDBOXES} sim sandboxes, RSS", f"{full:.0f} MiB", f"{empty:.0f} MiB with none", full, "MiB", AGENT)]


def _rows(count: int, everything: dict[str, float], nothing: dict[str, float]) -> list[Row]:
    rows = [
        Row(f"{name}, {count:,} sandboxes, RSS", f"{full:.0f} MiB", f"{nothing[name]:.0f} MiB with none")
        for name, full in everything.items()
    ]
    total = sum(everything.values())
    judged = CONTROL if count == FLEETS[-1] else None
    return [*rows, Row(f"both, {count:,} sandboxes", f"{total:.0f} MiB", "", total, "MiB", judged)]


async def _processes(count: int) -> dict[str, float]:
    """MiB of the processes, once they serve everything."""
    async with grown(count) as installation:
        await asyncio.sleep(IDLE_S)
        return {name: resident(pid) / MIB for name, pid in installation.pids.items() if name != "nats-server"}
