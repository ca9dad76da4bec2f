"""Five hundred real sandboxes on one node: how long they take to come and to go, and what the agent needs while they live.

The agent's time is what its process used of a processor in half a minute in which nothing was asked of it (it watches, samples and beats);
its memory is resident at the end of that. Beside it the same agent with no sandbox.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence

from agents.host import processes
from benchmarks.harness import Row, at_once
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from benchmarks.machine import resident
from bus.client import Caller

SANDBOXES = 500
WIDTH = 10
LOOK_S = 30.0
MIB = 1 << 20
DRIVERS = {"process": "bwrap", "oci": "crun"}


async def run(*, short: bool = False) -> list[Row]:
    if os.geteuid() != 0:
        return [Row("crowd", "needs root")]
    count, look = (50, 5.0) if short else (SANDBOXES, LOOK_S)
    return [row for driver, program in DRIVERS.items() if shutil.which(program) for row in await _driver(driver, count, look)]


async def _driver(driver: str, count: int, look: float) -> list[Row]:
    async with installed(driver) as (installation, caller):
        pid = installation.supervisor.children["node-1"].pid
        assert pid is not None
        await template(installation, caller, size=(0.1, 16))
        idle = await _needs(pid, look)
        came, made = await _all_come(caller, count)
        busy = await _needs(pid, look)
        went = await _all_go(caller, made)
    return [
        Row(f"{count} sandboxes come, {driver}, {WIDTH} at a time", f"{count / came:.1f}/s", "", came, "s"),
        Row(f"agent of {count}, {driver}, processor", f"{busy[0]:.2f} %", f"{idle[0]:.2f} % with none", busy[0], "%"),
        Row(f"agent of {count}, {driver}, RSS", f"{busy[1]:.0f} MiB", f"{idle[1]:.0f} MiB with none", busy[1], "MiB"),
        Row(f"{count} sandboxes go, {driver}, {WIDTH} at a time", f"{count / went:.1f}/s", "", went, "s"),
    ]


async def _needs(pid: int, look: float) -> tuple[float, float]:
    """Percent of one processor, and MiB."""
    before = processes.stat(pid)
    await asyncio.sleep(look)
    after = processes.stat(pid)
    assert before is not None
    assert after is not None
    return (after.cpu_s - before.cpu_s) / look * 100, resident(pid) / MIB


async def _all_come(caller: Caller, count: int) -> tuple[float, list[str]]:
    made: list[str] = []

    async def one(_: int) -> None:
        reply = await caller.command("default", "sandbox.create", {"template": ALIAS, "wait_s": WAIT_S})
        assert reply["result"]["state"] == "RUNNING", reply
        made.append(reply["result"]["sandbox_id"])

    began = time.perf_counter()
    await at_once(count, WIDTH, one)
    return time.perf_counter() - began, made


async def _all_go(caller: Caller, made: Sequence[str]) -> float:
    began = time.perf_counter()
    await at_once(len(made), WIDTH, lambda n: caller.command("default", "sandbox.delete", {"sandbox_id": made[n], "wait_s": WAIT_S}))
    return time.perf_counter() - began
