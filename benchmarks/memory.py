"""Resident memory: an idle agent with 100 simulated sandboxes, and control plane and projector with 10,000 and 100,000 in the log.

The log of that many running sandboxes on 100 nodes is written first; then the product's own processes start on it and are measured when
they serve. Nothing is extrapolated.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.commits import lives, nodes
from benchmarks.harness import Budget, Row, at_once
from benchmarks.installed import ALIAS, WAIT_S, installed, template
from benchmarks.machine import resident
from bus.append import Entry
from bus.client import Caller
from bus.connection import Connection, connect
from bus.fast import open_publisher
from bus.server import Server
from bus.streams import ensure_streams
from domain.kernel.errors import Refused

SANDBOXES, FLEETS = 100, (10_000, 100_000)
LOT = 2_000
"""Sandboxes that are written at one time."""
AGENT, CONTROL = Budget(80, "MiB"), Budget(1536, "MiB")
MIB = 1 << 20
IDLE_S = 3.0
READY_S = 120


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
    with tempfile.TemporaryDirectory(prefix="strandline-bench-") as directory, Server(Path(directory) / "nats", sync="2m") as server:
        (Path(directory) / "connect.json").write_text(json.dumps({"url": server.url, "creds": None, "inbox_prefix": "_INBOX"}))
        async with await connect(server.url, name="benchmark", watch_s=60) as nc:
            await ensure_streams(nc)
            stored = await _fill(nc, count)
            children = {name: _start(module, directory) for name, module in (("control plane", "handlers"), ("projector", "projections"))}
            try:
                await _served(Caller(nc), stored)
                await asyncio.sleep(IDLE_S)
                return {name: resident(child.pid) / MIB for name, child in children.items()}
            finally:
                for child in children.values():
                    child.terminate()
                    child.wait()


def _start(module: str, directory: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", module, "--dir", directory]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _fill(nc: Connection, count: int) -> int:
    """Write the log, lot by lot; returns its last position. Commits of one aggregate must follow each other."""
    publisher = open_publisher(nc)
    fleet, life, stored = list(nodes(100)) if count else [], lives(count), 0
    lots = iter(lambda: list(itertools.islice(life, 4 * LOT)), [])
    for lot in itertools.chain([fleet] if fleet else [], lots):
        for part in ([e for n, e in enumerate(lot) if n % 4 < 2], [e for n, e in enumerate(lot) if n % 4 >= 2]):
            await at_once(len(part), 256, _publish(publisher.publish, part))
        stored += len(lot)
    await publisher.close()
    return stored


def _publish(publish: Callable[[str, bytes], Awaitable[object]], part: list[Entry]) -> Callable[[int], Awaitable[object]]:
    return lambda n: publish(part[n].subject, part[n].data)


async def _served(caller: Caller, stored: int) -> None:
    """Until the control plane has read the log, and the view shows all of it."""
    async with asyncio.timeout(READY_S):
        for ask in (
            lambda: caller.command("default", "node.enroll", {"node_id": "last"}),
            lambda: caller.query("default", "sandboxes", "list", {"limit": 1, "min_seq": stored}),
        ):
            while True:
                try:
                    await ask()
                except Refused as refused:
                    if not refused.retryable:
                        raise
                else:
                    break
