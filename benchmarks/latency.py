"""One command at a time through the running processes: until its reply, and until a view shows it, beside a bare publish.

Bare: ``js.publish`` of a plain nats-py client with 300 bytes into a stream of its own on the installation's own server, which syncs every
message to the disk, one at a time.

Ours: ``node.cordon`` and ``node.uncordon`` in turn, each recording one event; then ``nodes.get`` with ``min_seq``. Measured in blocks, and
after each block until nothing is under way any more, so that no block pays for what the one before has left.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from pathlib import Path

import nats
from nats.aio.client import Client

from benchmarks.harness import Budget, Row, in_turn, millis, ratio
from benchmarks.installed import installed
from bus.client import Caller
from strandline.installation import CONNECT

NODE = "node-1"
REPLY, VISIBLE = Budget(3), Budget(5)
STREAM = "BARE"
SETTLE_S = 0.05


async def run(*, short: bool = False) -> list[Row]:
    block, turns = (20, 3) if short else (60, 21)
    async with installed("sim") as (installation, caller):
        plain = await _plain(installation.dir)
        bench = _Bench(plain, caller, block)
        await bench.prepare()
        await in_turn(2, {"warm": bench.bare, "up": bench.reply, "again": bench.visible})
        found = await in_turn(turns, {"bare": bench.bare, "reply": bench.reply, "visible": bench.visible})
        await plain.close()
    bare, reply, visible = found["bare"], found["reply"], found["visible"]
    return [
        Row("command → reply, p50", millis(reply), millis(bare), ratio(reply, bare), budget=REPLY),
        Row("command → visible in a view, p50", millis(visible), millis(bare), ratio(visible, bare), budget=VISIBLE),
    ]


async def _plain(directory: Path) -> Client:
    said = json.loads((directory / CONNECT).read_text())
    return await nats.connect(said["url"], user_credentials=said["creds"], inbox_prefix=said["inbox_prefix"])


class _Bench:
    def __init__(self, nc: Client, caller: Caller, block: int) -> None:
        self._nc, self._caller, self._block = nc, caller, block
        self._verbs = itertools.cycle(("node.cordon", "node.uncordon"))

    async def prepare(self) -> None:
        await self._nc.jetstream().add_stream(name=STREAM, subjects=["bare.>"])

    async def bare(self) -> float:
        js, data, took = self._nc.jetstream(), b"x" * 300, []
        for _ in range(self._block):
            began = time.perf_counter()
            await js.publish("bare.a", data)
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    async def reply(self) -> float:
        return await self._commands(visible=False)

    async def visible(self) -> float:
        return await self._commands(visible=True)

    async def _commands(self, *, visible: bool) -> float:
        took = []
        for _ in range(self._block):
            began = time.perf_counter()
            seq = (await self._caller.command("default", next(self._verbs), {"node_id": NODE}))["seq"]
            if visible:
                await self._caller.query("default", "nodes", "get", {"id": NODE, "min_seq": seq})
            took.append(time.perf_counter() - began)
        await self._caller.query("default", "nodes", "get", {"id": NODE, "min_seq": seq})
        await asyncio.sleep(SETTLE_S)
        return statistics.median(took)
