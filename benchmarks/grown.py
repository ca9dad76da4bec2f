"""Control plane and projector on a log that has grown already: so many running sandboxes on so many nodes, written before they start."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commits import lives, nodes
from benchmarks.harness import at_once
from bus.append import Entry
from bus.client import Caller
from bus.connection import Connection, connect
from bus.fast import open_publisher
from bus.server import Server
from bus.streams import ensure_streams
from domain.kernel.errors import Refused

LOT = 2_000
"""Sandboxes that are written at one time."""
READY_S = 120


@dataclass(frozen=True, slots=True)
class Grown:
    """``pids`` by name: ``nats-server``, ``control plane``, ``projector``."""

    nc: Connection
    pids: dict[str, int]


@asynccontextmanager
async def grown(sandboxes: int, on: int = 100) -> AsyncIterator[Grown]:
    """The product's own processes, when they serve all of it."""
    with tempfile.TemporaryDirectory(prefix="strandline-bench-") as directory, Server(Path(directory) / "nats", sync="2m") as server:
        (Path(directory) / "connect.json").write_text(json.dumps({"url": server.url, "creds": None, "inbox_prefix": "_INBOX"}))
        async with await connect(server.url, name="benchmark", watch_s=60) as nc:
            await ensure_streams(nc)
            stored = await _fill(nc, sandboxes, on)
            children = {name: _start(module, directory) for name, module in (("control plane", "handlers"), ("projector", "projections"))}
            try:
                await _served(Caller(nc), stored)
                yield Grown(nc, {"nats-server": server.pid, **{name: child.pid for name, child in children.items()}})
            finally:
                for child in children.values():
                    child.terminate()
                    child.wait()


def _start(module: str, directory: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", module, "--dir", directory]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _fill(nc: Connection, count: int, on: int) -> int:
    """Write the log, lot by lot; returns its last position. Commits of one aggregate must follow each other."""
    publisher = open_publisher(nc)
    fleet, life, stored = list(nodes(on)) if count else [], lives(count, lambda number: f"node-{number % on + 1}"), 0
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
