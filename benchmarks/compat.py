"""The compat matrix of 1,000 templates on 1,000 nodes, every one ready: a node's version change until it is visible, and the summary.

Visible: from the publishing of the node's commit to the answer of ``compat-matrix.summary`` that has read so far, in which every replica of
that node is STALE. A real server, the projector with all its views on SQLite, questions over the bus; bare: a question that reads nothing
(``views.list``). Nothing here is about the control plane, which writes that commit as any other (``latency``).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.commits import START, VERSIONS, Writer, nodes
from benchmarks.harness import Budget, Row, at_once, in_turn, millis
from bus.append import Entry
from bus.client import Caller
from bus.connection import connect
from bus.fast import open_publisher
from bus.requests import Publisher
from bus.server import Server
from bus.streams import ensure_streams
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.node import Node
from domain.nodes.orders import Versions
from domain.templates.replica import Replica
from domain.templates.template import Template, TemplateRequest
from projections.buslog import BusLog
from projections.projector import Projector
from projections.sqlite import SqliteStore
from projections.views import VIEWS

VISIBLE = Budget(1, "s")
SUMMARY = Budget(20, "ms")
JOB = "00000000-0000-5000-8000-000000000001"
FILL_S = 1800.0


async def run(*, short: bool = False) -> list[Row]:
    size, turns = (50, 3) if short else (1000, 15)
    with tempfile.TemporaryDirectory() as directory, Server(directory, sync="2m") as server:
        async with await connect(server.url, name="benchmark", watch_s=60) as nc:
            await ensure_streams(nc)
            publisher, store = open_publisher(nc), SqliteStore(Path(directory) / "views.db")
            entries = list(nodes(size)) + list(_templates(size))
            await at_once(len(entries), 256, lambda n: publisher.publish(entries[n].subject, entries[n].data))
            cells = _Cells(size)
            await at_once(size * size, 256, lambda n: publisher.publish(*cells.commit(n)))
            stored = len(entries) + size * size
            async with Projector(nc, store, BusLog(nc), VIEWS) as projector:
                began = time.perf_counter()
                assert await projector.reached("compat-matrix", stored, FILL_S)
                await projector.caught_up()  # that is: indexed, too
                filled = time.perf_counter() - began
                bench = _Bench(Caller(nc), publisher, size, stored)
                await bench.visible()  # warm
                found = await in_turn(turns, {"visible": bench.visible, "summary": bench.summary, "bare": bench.bare})
            await publisher.close()
            store.close()
    return [
        Row(
            f"a node's version change in {size} × {size}, visible (worst)",
            millis(found["visible"]),
            "",
            max(found["visible"]),
            "s",
            VISIBLE,
        ),
        Row("summary, p50", millis(found["summary"]), millis(found["bare"]), statistics.median(found["summary"]) * 1000, "ms", SUMMARY),
        Row(f"{stored:,} commits into all {len(VIEWS)} views, and their indexes", f"{filled:.0f} s", "", None),
    ]


def _template_id(number: int) -> str:
    return f"tpl-{number:024x}"


def _templates(count: int) -> Iterator[Entry]:
    writer = Writer()
    for number in range(count):
        template = Template.create(_template_id(number), START, TemplateRequest(image="docker://r/i:1"), None, JOB)
        yield writer.entry(template, START)


class _Cells:
    """Ready replicas, as commits of one text with other ids in it: a million of them made by the domain would take minutes.

    So their hashes are not their own, which no view looks at.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        template, node = _template_id(0), "node-0"
        replica = Replica.create(replica_id(template, node), START, template, node, None, JOB)
        replica.ready(START, JOB, VERSIONS, "sim")
        entry = Writer().entry(replica, START)
        self._subject, self._data = entry.subject, entry.data
        self._template, self._node = template, node

    def commit(self, number: int) -> tuple[str, bytes]:
        """Subject and data of cell ``number``."""
        template, node = _template_id(number // self._size), f"node-{number % self._size + 1}"
        data = self._data.replace(self._template.encode(), template.encode()).replace(self._node.encode(), node.encode())
        return self._subject.replace(self._template, template).replace(self._node, node), data


class _Bench:
    def __init__(self, caller: Caller, publisher: Publisher, size: int, seq: int) -> None:
        self._caller, self._publisher, self._size, self._seq = caller, publisher, size, seq
        self._changed = 0

    async def visible(self) -> float:
        """Another node runs another guest image."""
        self._changed += 1
        node = Node.create(f"node-{self._changed}", START)
        node.collect_events()
        node.hello(START, "boot", Versions(guest_image="2", agent="1", kernel="6.1"), (), node.capacity, (), {})
        entry = Writer().entry(node, START, SYSTEM_PROJECT)
        began = time.perf_counter()
        await self._publisher.publish(entry.subject, entry.data)
        self._seq += 1
        summary = await self._ask("compat-matrix", "summary", min_seq=self._seq)
        took = time.perf_counter() - began
        assert (summary["stale_replicas"], summary["affected_nodes"]) == (self._changed * self._size, self._changed)
        return took

    async def summary(self) -> float:
        return await self._timed("compat-matrix", "summary")

    async def bare(self) -> float:
        return await self._timed("views", "list")

    async def _timed(self, view: str, verb: str) -> float:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            await self._ask(view, verb)
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    async def _ask(self, view: str, verb: str, **body: Any) -> dict[str, Any]:
        items: list[dict[str, Any]] = (await self._caller.query("default", view, verb, body))["items"]
        return items[0]
