"""The eventsourcing library over its own recorders and over JetStream's (``bus.recorder``): same aggregate, same work, by threads.

Work: create an aggregate of one event and save it; load one, run one command, save its event. Every recorder is durable: SQLite in a file,
PostgreSQL with its defaults, JetStream with one replica that syncs every message. There is no budget: it is what a choice costs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.harness import Row, in_turn, per_second, ratio
from benchmarks.postgres import DATABASE, USER, binaries, postgres
from bus.recorder.bridge import Bridge
from bus.server import Server

THREADS = 16
OURS = "JetStream"
ENVIRONMENT = {"A": "b" * 60, "C": "d"}


class Box(Aggregate):
    """A sandbox, as far as the library's own examples would have it."""

    def __init__(self, image: str, env: dict[str, str]) -> None:
        self.image, self.env, self.starts = image, env, 0

    @event("Started")
    def start(self, image: str, env: dict[str, str]) -> None:
        self.image, self.env = image, env
        self.starts += 1


class Boxes(Application[UUID]):
    def create(self) -> UUID:
        box = Box(image="python:3.11", env=ENVIRONMENT)
        self.save(box)
        return box.id

    def start(self, identifier: UUID) -> None:
        box: Box = self.repository.get(identifier)
        box.start(image="python:3.11", env=ENVIRONMENT)
        self.save(box)


async def run(*, short: bool = False) -> list[Row]:
    count, turns = (50, 2) if short else (400, 5)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strandline-bench-")))
        server = stack.enter_context(Server(directory / "nats"))
        peers = {name: _Peer(environment, count) for name, environment in _environments(stack, directory, server)}
        stack.callback(Bridge.close_all)
        for peer in peers.values():
            stack.callback(peer.app.close)
        found = {}
        for work in ("create", "command", "create_by_threads", "command_by_threads"):
            found[work] = await in_turn(turns, {name: _measure(peer, work) for name, peer in peers.items()})
    titles = {
        "create": "create, one at a time",
        "command": "load, command, save, one at a time",
        "create_by_threads": f"create, {THREADS} threads",
        "command_by_threads": f"load, command, save, {THREADS} threads",
    }
    return [
        Row(f"{title}; bare: {name}", per_second(found[work][OURS]), per_second(values), ratio(found[work][OURS], values))
        for work, title in titles.items()
        for name, values in found[work].items()
        if name != OURS
    ]


def _environments(stack: ExitStack, directory: Path, server: Server) -> Iterator[tuple[str, dict[str, str]]]:
    yield OURS, {"PERSISTENCE_MODULE": "bus.recorder", "NATS_URL": server.url, "NATS_STREAM": "PEERS", "NATS_REPLICAS": "1"}
    yield (
        "SQLite",
        {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(directory / "peers.db"), "SQLITE_LOCK_TIMEOUT": "10"},
    )
    if binaries() is not None:
        connection = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(stack.enter_context(postgres())), "POSTGRES_USER": USER}
        yield (
            "PostgreSQL",
            {"PERSISTENCE_MODULE": "eventsourcing.postgres", "POSTGRES_DBNAME": DATABASE, "POSTGRES_PASSWORD": "x", **connection},
        )


class _Peer:
    """An application over one recorder. Each measure answers in calls per second."""

    def __init__(self, environment: dict[str, str], count: int) -> None:
        self.app = Boxes(env={**os.environ, **environment})
        self._count = count
        self._ids: list[UUID] = []
        self._turns = itertools.count()

    def create(self) -> float:
        return self._timed(self._count, lambda _: self._ids.append(self.app.create()))

    def command(self) -> float:
        return self._timed(self._count, lambda n: self.app.start(self._ids[n]))

    def create_by_threads(self) -> float:
        return self._threaded(lambda _: self.app.create())

    def command_by_threads(self) -> float:
        return self._threaded(lambda n: self.app.start(self._ids[n]))

    @staticmethod
    def _timed(count: int, one: Callable[[int], object]) -> float:
        began = time.perf_counter()
        for number in range(count):
            one(number)
        return count / (time.perf_counter() - began)

    def _threaded(self, one: Callable[[int], object]) -> float:
        with ThreadPoolExecutor(THREADS) as pool:
            began = time.perf_counter()
            list(pool.map(one, range(self._count)))
            return self._count / (time.perf_counter() - began)


def _measure(peer: _Peer, work: str):
    async def measure() -> float:
        return await asyncio.to_thread(getattr(peer, work))

    return measure
