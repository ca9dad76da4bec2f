"""What a commit takes on disk: one event with 300 bytes of data, in the stream's block files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.commits import created
from benchmarks.harness import Budget, Row, at_once
from bus.connection import connect
from bus.fast import open_publisher
from bus.server import Server
from bus.streams import ensure_streams
from bus.subjects import EVENTS

BUDGET = Budget(1000, "bytes")


async def run(*, short: bool = False) -> list[Row]:
    count = 2_000 if short else 50_000
    with tempfile.TemporaryDirectory() as directory, Server(directory, sync="2m") as server:
        async with await connect(server.url, name="benchmark") as nc:
            await ensure_streams(nc)
            publisher = open_publisher(nc)
            messages = [entry.message() for entry in created(count)]
            await at_once(count, 256, lambda n: publisher.publish(*messages[n]))
        server.stop()  # what it keeps in memory is on the disk afterwards
        blocks, index = _sizes(server.store)
    body = sum(len(message.data) for message in messages) / count
    return [
        Row("block files per commit", f"{blocks / count:.0f} B", f"body {body:.0f} B", blocks / count, "bytes", BUDGET),
        Row("with the stream's indexes", f"{(blocks + index) / count:.0f} B", "", (blocks + index) / count, "bytes"),
    ]


def _sizes(store: Path) -> tuple[int, int]:
    """Bytes of block files, and of what else the stream keeps."""
    files = [path for path in store.rglob("*") if path.is_file() and EVENTS in path.parts]
    blocks = sum(path.stat().st_size for path in files if path.suffix == ".blk")
    return blocks, sum(path.stat().st_size for path in files) - blocks
