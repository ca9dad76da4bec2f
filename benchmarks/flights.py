"""Sandboxes through the control plane, 1, 10 and 20 under way at a time, beside the same by driver, storage and network alone.

Ours: commands with ``wait_s``, until their reply. Alone: ``benchmarks/alone.py``, in turn with it, in the same numbers at a time; the parts
of a node in a process of their own, without log, bus, journal and starts in stock. Both start as many at once as there are cores. With a
pause before each there is time to fill the stock up, or to have a machine wait; one right after the other there is not. Snapshot, rollback
and clone are shown as they are: alone there is no such thing as a rollback.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Budget, Row, at_once
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from bus.client import Caller

BUDGET = Budget(10, "ms")
PAUSE_S = {"process": 0.1, "oci": 0.1, "vm": 0.6}
"""Before each of those that come one at a time: long enough to hold another start, or to have another machine wait."""
WIDTHS = (1, 10, 20)
"""How many at a time of those that come without a pause."""
SETTLE_S = 0.2
SIZE = {"process": (0.1, 64), "oci": (0.1, 64), "vm": (1.0, 128)}
"""Processors and MiB of each sandbox."""
PROGRAM = ("/bin/sleep", "1000000")
DRIVERS = {"process": "bwrap", "oci": "crun", "vm": "qemu-system-x86_64"}


async def run(*, short: bool = False) -> list[Row]:
    if os.geteuid() != 0:
        return [Row("flights", "needs root")]
    rows: list[Row] = []
    for driver, program in DRIVERS.items():
        if shutil.which(program):
            rows += await _driver(driver, 1 if short else 4)
    return rows


async def _driver(driver: str, rounds: int) -> list[Row]:
    async with installed(driver) as (installation, caller):
        await template(installation, caller, size=SIZE[driver])
        sandbox = (await _create(caller, {"template": ALIAS}))["sandbox_id"]
        snapshot = (await _ask(caller, "snapshot.create", {"sandbox_id": sandbox}))["snapshot_id"]
        node = installation.dir / "nodes" / "node-1"
        root = next((node / "storage").glob(f"**/roots/{sandbox}/manifest.json"))  # of trees, or of disks
        artifact = json.loads(root.read_text())["artifact"]
        ext4 = json.loads((root.parents[2] / "artifacts" / artifact / "manifest.json").read_text())["ext4"]
        with tempfile.TemporaryDirectory(prefix="strandline-bench-", ignore_cleanup_errors=True) as directory:
            alone = await _Alone.open(driver, Path(directory), ext4)
            try:
                await alone.do("snapshot")
                bodies = {"create": {"template": ALIAS}, "restore": {"snapshot_id": snapshot}}
                rows = [row for what, body in bodies.items() for row in await _beside(driver, caller, alone, what, body, rounds)]
            finally:
                await alone.close()
        return [*rows, *await _moments(driver, caller, sandbox, rounds * 5)]


async def _beside(driver: str, caller: Caller, alone: _Alone, what: str, body: dict[str, Any], rounds: int) -> list[Row]:
    """Creation, from the template or from a snapshot, at each width."""
    name = {"create": "create from template", "restore": "create from snapshot"}[what]
    rows = []
    for width, pause in ((1, PAUSE_S[driver]), *((width, 0.0) for width in WIDTHS)):
        count = max(10, width)
        await _ours(caller, body, 4, width, pause)
        await alone.do(what, 4, width, pause)
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            ours += await _ours(caller, body, count, width, pause)
            bare += await alone.do(what, count, width, pause)
        more = (statistics.median(ours) - statistics.median(bare)) * 1000
        budget = BUDGET if pause else None  # with more than there are cores, what is measured is the queue
        apart = f"{pause:g} s apart" if pause else f"{width} at a time"
        rows.append(Row(f"{name}, {driver}, {apart}", spread(ours), spread(bare), more, "ms", budget))
    return rows


async def _moments(driver: str, caller: Caller, sandbox: str, times: int) -> list[Row]:
    """Snapshot, rollback, and twenty clones at once, through the control plane."""
    taken, back, clones = [], [], []
    for _ in range(times):
        began = time.perf_counter()
        snapshot = (await _ask(caller, "snapshot.create", {"sandbox_id": sandbox}))["snapshot_id"]
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
        await _ask(caller, "sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot})
        back.append(time.perf_counter() - began)
    for _ in range(max(1, times // 5)):
        began = time.perf_counter()
        made = (await _ask(caller, "sandbox.clone", {"sandbox_id": sandbox, "count": 20}))["sandbox_ids"]
        clones.append(time.perf_counter() - began)
        await _delete(caller, made)
    return [
        Row(f"snapshot, {driver}", spread(taken)),
        Row(f"rollback, {driver}", spread(back)),
        Row(f"20 clones of one sandbox at once, {driver}", spread(clones)),
    ]


async def _ask(caller: Caller, name: str, body: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = (await caller.command("default", name, {**body, "wait_s": WAIT_S}))["result"]
    assert result.get("settled", True), result
    return result


async def _create(caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
    made = await _ask(caller, "sandbox.create", body)
    assert made["state"] == "RUNNING", made
    return made


async def _ours(caller: Caller, body: dict[str, Any], count: int, width: int, pause: float) -> list[float]:
    took: list[float] = []
    made: list[str] = []

    async def one(_: int) -> None:
        await asyncio.sleep(pause)
        began = time.perf_counter()
        sandbox = (await _create(caller, body))["sandbox_id"]
        took.append(time.perf_counter() - began)
        made.append(sandbox)

    await at_once(count, width, one)
    await _delete(caller, made)
    return took


async def _delete(caller: Caller, sandboxes: Sequence[str]) -> None:
    await asyncio.gather(*(_ask(caller, "sandbox.delete", {"sandbox_id": one}) for one in sandboxes))
    await asyncio.sleep(SETTLE_S)  # the kernel takes network namespaces down behind whoever ended them


def spread(seconds: Sequence[float]) -> str:
    """p50 / p95 / p99 in milliseconds."""
    ordered = sorted(seconds)
    return " / ".join(f"{ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000:.1f}" for part in (0.5, 0.95, 0.99)) + " ms"


class _Alone:
    """The process that does it without us."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, driver: str, directory: Path, ext4: str) -> _Alone:
        pipe = asyncio.subprocess.PIPE
        words = (driver, str(directory), ext4, *map(str, SIZE[driver]), *PROGRAM)
        return cls(await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.alone", *words, stdin=pipe, stdout=pipe))

    async def do(self, what: str, count: int = 1, width: int = 1, pause: float = 0) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, "count": count, "width": width, "pause": pause}).encode() + b"\n")
        found: list[float] = json.loads(await self._process.stdout.readline())
        await asyncio.sleep(SETTLE_S)
        return found

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
