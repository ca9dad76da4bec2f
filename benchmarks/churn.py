"""Sandboxes that come and go, 1, 10 and 50 under way at a time, beside the bare runtime doing the same.

Ours: ``sandbox.create`` and then ``sandbox.delete``, each with ``wait_s``, until its reply: RUNNING, and gone with all it had on the host.
Bare: ``benchmarks/bare_start.py``, as many of them as are under way: overlay mount, ``crun`` or ``bwrap``, its end, and the end of what it
left. No log, no journal, no address, no network: that is all on top. With more under way than there are processors what is measured
is the queue, on both sides.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.create import DRIVERS, Bare
from benchmarks.flights import spread
from benchmarks.harness import Row, at_once
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from bus.client import Caller

WIDTHS = (1, 10, 50)
ROUNDS = 4
AT_LEAST = 20
SETTLE_S = 0.5


async def run(*, short: bool = False) -> list[Row]:
    if os.geteuid() != 0:
        return [Row("churn", "needs root")]
    widths, rounds = ((1, 5), 1) if short else (WIDTHS, ROUNDS)
    rows: list[Row] = []
    for driver, program in DRIVERS.items():
        if shutil.which(program):
            rows += await _driver(driver, widths, rounds)
    return rows


async def _driver(driver: str, widths: tuple[int, ...], rounds: int) -> list[Row]:
    async with installed(driver) as (installation, caller), AsyncExitStack() as stack:
        await template(installation, caller)
        kept = (await caller.command("default", "sandbox.create", {"template": ALIAS, "wait_s": WAIT_S}))["result"]["sandbox_id"]
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strandline-bench-", ignore_cleanup_errors=True)))
        bares = []
        for place in _places(directory, max(widths)):
            bares.append(await Bare.open(driver, place, installation.dir / "nodes" / "node-1", kept))
            stack.push_async_callback(bares[-1].close)
        return [row for width in widths for row in await _at_width(driver, caller, bares[:width], rounds)]


def _places(directory: Path, count: int) -> list[Path]:
    """One for each process of the bare runtime, which walks there as nobody when it has mapped its users."""
    directory.chmod(0o711)
    places = [directory / str(number) for number in range(count)]
    for place in places:
        place.mkdir()
    return places


async def _at_width(driver: str, caller: Caller, bares: list[Bare], rounds: int) -> list[Row]:
    width = len(bares)
    came: dict[str, list[float]] = {"ours": [], "bare": []}
    went: dict[str, list[float]] = {"ours": [], "bare": []}
    count = max(AT_LEAST, width)

    async def ours(_: int) -> None:
        began = time.perf_counter()
        made = (await caller.command("default", "sandbox.create", {"template": ALIAS, "wait_s": WAIT_S}))["result"]
        runs = time.perf_counter()
        assert made["state"] == "RUNNING", made
        await caller.command("default", "sandbox.delete", {"sandbox_id": made["sandbox_id"], "wait_s": WAIT_S})
        came["ours"].append(runs - began)
        went["ours"].append(time.perf_counter() - runs)

    free = list(bares)

    async def bare(_: int) -> None:
        one = free.pop()
        start, end = await one.life()
        free.append(one)
        came["bare"].append(start)
        went["bare"].append(end)

    for measure in (ours, bare) * rounds:
        await at_once(count, width, measure)
        await asyncio.sleep(SETTLE_S)  # the kernel takes network namespaces down behind whoever ended them
    return [
        Row(f"come, {driver}, {width} at a time", spread(came["ours"]), spread(came["bare"])),
        Row(f"go, {driver}, {width} at a time", spread(went["ours"]), spread(went["bare"])),
    ]
