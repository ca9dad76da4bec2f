"""``sandbox.create`` through control plane and agent until it runs, on top of what the bare runtime needs for the same start.

Ours: the command with ``wait_s``, until its reply; the sandbox is RUNNING then. One at a time; each is deleted before the next.
Before each start the machine is left alone for a moment: the kernel takes network namespaces down behind whoever ended them, and the agent
fills its stock up. ``STRAND_STARTS_WAITING=0`` shows the same without starts in stock (docs/adr/0023).
Bare: ``benchmarks/bare_start.py``, in turn with it: overlay mount and ``crun run`` with the same ``config.json``, or ``bwrap`` with the
same words. What only the product does is all on top: the log, the journal, a leased address, a network with a veth pair, watching.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Budget, Row, difference, in_turn, millis
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from bus.client import Caller

BUDGET = Budget(10, "ms")
SETTLE_S = 0.1
DRIVERS = {"process": "bwrap", "oci": "crun"}


async def run(*, short: bool = False) -> list[Row]:
    turns = 5 if short else 40
    if os.geteuid() != 0:
        return [Row("create", "needs root")]
    return [await _driver(driver, turns) for driver, program in DRIVERS.items() if shutil.which(program)]


async def _driver(driver: str, turns: int) -> Row:
    async with installed(driver) as (installation, caller):
        await template(installation, caller)
        kept = (await _create(caller))["sandbox_id"]  # it holds the artifact's mount and shows the configuration
        node = installation.dir / "nodes" / "node-1"
        with tempfile.TemporaryDirectory(prefix="strandline-bench-", ignore_cleanup_errors=True) as directory:
            bare = await Bare.open(driver, Path(directory), node, kept)
            try:
                await in_turn(3, {"bare": bare.start, "ours": lambda: _ours(caller)})
                found = await in_turn(turns, {"bare": bare.start, "ours": lambda: _ours(caller)})
            finally:
                await bare.close()
    more = difference(found["ours"], found["bare"]) * 1000
    return Row(f"create, {driver}, on top of the runtime, p50", millis(found["ours"]), millis(found["bare"]), more, "ms", BUDGET)


async def _create(caller: Caller) -> dict[str, str]:
    reply = await caller.command("default", "sandbox.create", {"template": ALIAS, "wait_s": WAIT_S})
    assert reply["result"]["state"] == "RUNNING", reply
    return dict(reply["result"])


async def _ours(caller: Caller) -> float:
    await asyncio.sleep(SETTLE_S)
    began = time.perf_counter()
    made = await _create(caller)
    took = time.perf_counter() - began
    await caller.command("default", "sandbox.delete", {"sandbox_id": made["sandbox_id"], "wait_s": WAIT_S})
    return took


class Bare:
    """The process that starts by the runtime alone."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, driver: str, directory: Path, node: Path, sandbox: str) -> Bare:
        manifest = json.loads((node / "storage" / "roots" / sandbox / "manifest.json").read_text())
        lower = node / "storage" / "artifacts" / manifest["artifact"] / "lower"
        words = [driver, str(directory), str(lower)]
        if driver == "oci":
            words.append(str(node / "drivers" / "oci" / sandbox / "config.json"))
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.bare_start", *words, stdin=pipe, stdout=pipe))

    async def start(self) -> float:
        await asyncio.sleep(SETTLE_S)
        took, _ = await self.life()
        return took

    async def life(self) -> tuple[float, float]:
        """Seconds until it runs, and until nothing is left of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"go\n")
        took = float(await self._process.stdout.readline())
        began = time.perf_counter()
        assert await self._process.stdout.readline() == b"clean\n"
        return took, time.perf_counter() - began

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
