"""``sandbox.create`` out of a warm pool, against the same command where nothing waits.

Both go through control plane, log and reply in one installation and in turn, one at a time, each deleted before the next. Before each the
pool is full and the machine left alone for a moment: what is measured is what the caller waits for, not what the refill costs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import Any

from benchmarks.create import DRIVERS, SETTLE_S
from benchmarks.harness import Budget, Row, in_turn, millis, ratio
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from bus.client import Caller

BUDGET = Budget(0.5)
MEMORY_MB = 64
"""As the template has it; who says it asks for a sandbox of his own."""


async def run(*, short: bool = False) -> list[Row]:
    turns = 5 if short else 40
    if os.geteuid() != 0:
        return [Row("hand-over", "needs root")]
    return [await _driver(driver, turns) for driver, program in DRIVERS.items() if shutil.which(program)]


async def _driver(driver: str, turns: int) -> Row:
    async with installed(driver) as (installation, caller):
        await template(installation, caller, size=(0.1, MEMORY_MB))
        measures = {"warm": lambda: _create(caller, warm=True), "cold": lambda: _create(caller, warm=False)}
        await in_turn(2, measures)
        found = await in_turn(turns, measures)
        await caller.command("default", "pool.delete", {"template": ALIAS, "wait_s": WAIT_S})
    value = ratio(found["warm"], found["cold"])
    return Row(f"hand-over, {driver}, of a cold create, p50", millis(found["warm"]), millis(found["cold"]), value, budget=BUDGET)


async def _create(caller: Caller, *, warm: bool) -> float:
    pool = await caller.command("default", "pool.set", {"template": ALIAS, "desired": 2, "wait_s": WAIT_S})
    assert pool["result"]["settled"], pool
    await asyncio.sleep(SETTLE_S)
    own: dict[str, Any] = {} if warm else {"memory_mb": MEMORY_MB}
    began = time.perf_counter()
    reply = await caller.command("default", "sandbox.create", {"template": ALIAS, "wait_s": WAIT_S, **own})
    took = time.perf_counter() - began
    made = reply["result"]
    assert (made["state"], made["handed_over"]) == ("RUNNING", warm), reply
    await caller.command("default", "sandbox.delete", {"sandbox_id": made["sandbox_id"], "wait_s": WAIT_S})
    return took
