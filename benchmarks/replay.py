"""Replay of the log into a view, beside reading the same log and doing nothing with it.

Bare: nats-py's ordered consumer over all of EVENTS, with a callback that only counts: the fastest way to read a stream that it has
(reference/jetstream-eventstore.md §3.3). Ours: the projector's own ``Live`` over a new SQLite file: parse, apply and save, in transactions,
until all is saved. Between them, without a budget: ``bus.subscription.Tail``, which the projector reads by, with no work done.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.commits import lives
from benchmarks.harness import Budget, Row, at_once, in_turn, per_second, ratio
from bus import subjects
from bus.connection import Connection, connect
from bus.fast import open_publisher
from bus.garbage import look_rarely
from bus.server import Server
from bus.streams import ensure_streams
from bus.subscription import Tail
from projections.buslog import BusLog
from projections.live import Live
from projections.sqlite import SqliteStore
from projections.view import View
from projections.views import VIEWS

BUDGET = Budget(0.7, least=True)
VIEW = "sandboxes"
LOT = 2_000
"""Commits of 500 sandboxes."""


async def run(*, short: bool = False) -> list[Row]:
    count, turns = (2_000, 2) if short else (20_000, 5)
    look_rarely()  # as the projector's process has it
    with tempfile.TemporaryDirectory() as directory, Server(directory, sync="2m") as server:
        async with await connect(server.url, name="benchmark", watch_s=60) as nc:
            await ensure_streams(nc)
            stored = await _fill(nc, count)
            plain = await nats.connect(server.url)
            bench = _Bench(nc, plain, Path(directory), stored)
            one = [view for view in VIEWS if view.name == VIEW]
            found = await in_turn(
                turns, {"bare": bench.bare, "read": bench.read, "one": lambda: bench.replay(one), "all": lambda: bench.replay(VIEWS)}
            )
            await plain.close()
    return [
        Row(
            f"replay into the view {VIEW!r}, commits",
            per_second(found["one"]),
            per_second(found["bare"]),
            ratio(found["one"], found["bare"]),
            budget=BUDGET,
        ),
        Row("reading by Tail, no work done", per_second(found["read"]), per_second(found["bare"]), ratio(found["read"], found["bare"])),
        Row(
            f"replay into all {len(VIEWS)} views, commits",
            per_second(found["all"]),
            per_second(found["bare"]),
            ratio(found["all"], found["bare"]),
        ),
    ]


async def _fill(nc: Connection, count: int) -> int:
    """The lives of that many sandboxes, many of them starting at the same time; how many commits that is.

    Commits of one aggregate must follow each other, so each lot is published in two parts.
    """
    publisher = open_publisher(nc)
    entries = [(entry.subject, entry.data) for entry in lives(count)]
    for lot in range(0, len(entries), LOT):
        numbers = range(lot, min(lot + LOT, len(entries)))
        for part in ([entries[n] for n in numbers if n % 4 < 2], [entries[n] for n in numbers if n % 4 >= 2]):
            await at_once(len(part), 256, lambda n, part=part: publisher.publish(*part[n]))
    await publisher.close()
    return len(entries)


class _Bench:
    def __init__(self, nc: Connection, plain: Client, directory: Path, stored: int) -> None:
        self._nc, self._plain, self._directory, self._stored = nc, plain, directory, stored
        self._files = 0

    async def bare(self) -> float:
        done, left = asyncio.Event(), self._stored

        async def count(_: Msg) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        began, js = time.perf_counter(), self._plain.jetstream()
        reading = await js.subscribe(subjects.ALL_EVENTS, cb=count, ordered_consumer=True, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await done.wait()
        took = time.perf_counter() - began
        await reading.unsubscribe()
        return self._stored / took

    async def read(self) -> float:
        done = asyncio.Event()

        async def take(batch: Sequence[int]) -> None:
            if batch[-1] >= self._stored:
                done.set()

        began = time.perf_counter()
        async with Tail(self._nc, 0, [subjects.ALL_EVENTS], take, decode=lambda _, seq: seq):
            await done.wait()
        return self._stored / (time.perf_counter() - began)

    async def replay(self, views: Sequence[View]) -> float:
        self._files += 1
        store = SqliteStore(self._directory / f"views-{self._files}.db")
        live = Live(store, views, BusLog(self._nc))
        live.open()
        began = time.perf_counter()
        task = asyncio.create_task(live.run())
        for view in views:
            assert await live.reached(view.name, self._stored, 120)
        took = time.perf_counter() - began
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.close()
        gc.collect()
        return self._stored / took
