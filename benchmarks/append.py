"""Appending commits: the store's publisher, and the whole store, beside a raw socket and plain nats-py on the same server.

Compared are real commits (one event with 300 bytes of data) with Msg-Id and expectation, all acknowledged:

- publisher: ``bus/fast.py``, given commits that are encoded already. This is the layer that the budget is about.
- store: ``Store.transact``: lock, cached aggregate, decision, encoding, hash, append by that publisher.
- raw socket: the same messages as bytes built before, acknowledgements counted.
- nats-py: ``js.publish`` of a plain client with the same headers, one task per message under way.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

import nats
from nats.aio.client import Client

from benchmarks.commits import START, created, sandbox_id, spec
from benchmarks.harness import Budget, Row, at_once, in_turn, per_second, ratio
from benchmarks.rawsocket import blast, prepared
from bus.append import Entry
from bus.connection import Connection, connect
from bus.fast import open_publisher
from bus.requests import Publisher
from bus.server import Server
from bus.store import Store
from bus.streams import ensure_streams
from domain.kernel.command import Cause
from domain.sandboxes.sandbox import Sandbox

WIDTHS = (64, 256)
RAW, OURS, PLAIN, STORE = "raw socket", "publisher", "nats-py", "store"
OF_RAW, OF_PLAIN = Budget(0.5, least=True), Budget(1.8, least=True)


async def run(*, short: bool = False) -> list[Row]:
    rows = []
    turns, share = (2, 8) if short else (7, 1)
    for sync, what in (("2m", ""), ("always", ", fsync each")):
        with tempfile.TemporaryDirectory() as directory, Server(directory, sync=sync) as server:
            async with await connect(server.url, name="benchmark", watch_s=60) as nc, await nats.connect(server.url) as plain:
                await ensure_streams(nc)
                for width in WIDTHS if sync == "2m" else WIDTHS[1:]:
                    bench = await _Bench(nc, plain, server.port, width, share if sync == "2m" else share * 8).prepare()
                    rows += _rows(await in_turn(turns, bench.measures()), width, what)
    return rows


class _Bench:
    """One width on one server. ``share`` divides the number of messages."""

    _numbers = itertools.count()

    def __init__(self, nc: Connection, plain: Client, port: int, width: int, share: int) -> None:
        self._nc, self._plain_nc, self._port, self._width, self._share = nc, plain, port, width, share
        self._publisher: Publisher
        self._store: Store
        self._models = list(created(1_000))
        self._ids = [sandbox_id(number) for number in range(width)]

    async def prepare(self) -> _Bench:
        """Aggregates for the store to decide about, as many as may be under way."""
        self._publisher = open_publisher(self._nc)
        self._store = await Store.open(self._nc)
        await at_once(self._width, self._width, self._create)
        return self

    def measures(self) -> dict[str, Callable[[], Awaitable[float]]]:
        return {RAW: self._raw, OURS: self._ours, PLAIN: self._plain, STORE: self._transact}

    def _entries(self, count: int) -> list[Entry]:
        """Commits on subjects, and with ids, that no measure had before. Their bodies repeat: encoding is not what is measured."""
        unique, models = next(self._numbers), itertools.cycle(self._models)
        return [
            Entry(f"{model.subject}-{self._width}-{unique}-{n}", model.data, f"{model.commit_id[:16]}{self._width:04}{unique:04}{n:08}", 0)
            for n, model in zip(range(count // self._share), models, strict=False)
        ]

    async def _raw(self) -> float:
        commands = prepared(self._entries(30_000))
        return len(commands) / await asyncio.to_thread(blast, self._port, commands, self._width)

    async def _ours(self) -> float:
        messages = [entry.message() for entry in self._entries(16_000)]
        return await self._timed(len(messages), lambda n: self._publisher.publish(*messages[n]))

    async def _plain(self) -> float:
        messages, js = [entry.message() for entry in self._entries(8_000)], self._plain_nc.jetstream()
        return await self._timed(
            len(messages), lambda n: js.publish(messages[n].subject, messages[n].data, headers=dict(messages[n].headers or {}))
        )

    async def _transact(self) -> float:
        at = START + timedelta(seconds=next(self._numbers))

        async def one(number: int) -> None:
            cause = Cause(f"{at.timestamp()}-{number}", "d", "local", "default", at)
            name = self._ids[number % self._width]
            await self._store.transact(Sandbox, "default", name, partial(_change, at=at + timedelta(milliseconds=number)), cause)

        return await self._timed(6_000 // self._share, one)

    async def _create(self, number: int) -> None:
        cause = Cause(f"create-{number}", "d", "local", "default", START)

        def decide(found: Sandbox | None) -> Sandbox:
            sandbox = found or Sandbox.create(sandbox_id(number), START, spec(), "node-1")
            sandbox.mark_running(START, 1, "sim")
            return sandbox

        await self._store.transact(Sandbox, "default", sandbox_id(number), decide, cause)

    async def _timed(self, count: int, one: Callable[[int], Awaitable[object]]) -> float:
        began = time.perf_counter()
        await at_once(count, self._width, one)
        return count / (time.perf_counter() - began)


def _change(sandbox: Sandbox | None, at: datetime) -> Sandbox:
    assert sandbox is not None
    sandbox.set_ttl(at, 3600, "absolute")
    return sandbox


def _rows(found: dict[str, list[float]], width: int, what: str) -> list[Row]:
    judged = not what
    ours, raw, plain, store = found[OURS], found[RAW], found[PLAIN], found[STORE]
    return [
        Row(
            f"publisher / raw socket, {width} in flight{what}",
            per_second(ours),
            per_second(raw),
            ratio(ours, raw),
            budget=OF_RAW if judged else None,
        ),
        Row(
            f"publisher / nats-py, {width} in flight{what}",
            per_second(ours),
            per_second(plain),
            ratio(ours, plain),
            budget=OF_PLAIN if judged else None,
        ),
        Row(f"store / raw socket, {width} in flight{what}", per_second(store), per_second(raw), ratio(store, raw)),
    ]
