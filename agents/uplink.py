"""The agent's end of the bus: one connection that may come late and go at times, and what travels over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from agents.builder import Shelf
from agents.options import Options
from agents.vault import Chunks
from bus import chunks, identity, objects, reports, usage
from bus.chunkkeeper import ask_missing
from bus.connection import Connection, connect_from
from bus.heartbeat import beating
from bus.lanes import LANE_WORK, Ack, LaneReader
from bus.logs import LogWriter, Stream
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.errors import Refused
from domain.nodes.orders import Order, Report

log = structlog.get_logger(__name__)

LANE: Final = replace(LANE_WORK, grace=3)
"""Handing over is cheap, and the supervisor is patient for 20 s altogether."""
CONNECT_S: Final = 2.0
AGAIN_S: Final = 0.5
LOGS_AHEAD: Final = 1 << 20
"""Bytes of output that are on their way at most: what a crash can lose."""


class Uplink:
    """Whatever is asked of it before the bus is there waits for the bus."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connected: asyncio.Future[Connection] | None = None
        self._writer: LogWriter | None = None
        self._stack = AsyncExitStack()

    async def connect(self) -> None:
        """Connect, however long that takes: sandboxes run meanwhile, and what is to be said waits in the journal."""
        directory = self._options.connect or self._options.dir
        while True:
            try:
                connection = await connect_from(directory, f"agent-{self._options.node}", timeout=CONNECT_S)
            except Refused as refused:
                log.info("uplink.waiting", error=refused.message)
                await asyncio.sleep(AGAIN_S)
            else:
                self._writer = await self._stack.enter_async_context(LogWriter(connection))
                self._future().set_result(connection)
                return

    def _future(self) -> asyncio.Future[Connection]:
        if self._connected is None:
            self._connected = asyncio.get_running_loop().create_future()
        return self._connected

    async def _bus(self) -> Connection:
        return await asyncio.shield(self._future())

    async def close(self) -> None:
        """Say what is still to be said, and go."""
        await self._stack.aclose()
        future = self._future()
        if future.done():
            await future.result().drain()
        else:
            future.cancel()

    async def report(self, report: Report) -> Any:
        """Returns when it is stored."""
        return await reports.report(await self._bus(), report)

    async def lane(self, handle: Callable[[Order, Ack], Awaitable[None]], arrived: Callable[[Order], None]) -> LaneReader:
        """This node's orders, not yet started."""
        return LaneReader(await self._bus(), self._options.node, handle, arrived=arrived, work=LANE)

    async def beating(self, body: Callable[[], Mapping[str, Any]]) -> AbstractAsyncContextManager[None]:
        """Heartbeats, while the block runs."""
        return beating(await self._bus(), self._options.node, body, self._options.settings.heartbeat_s)

    async def fetch(self, artifact_id: str, path: Path, sha256: str) -> int:
        """An artifact's verified bytes."""
        return await objects.get_file(await self._bus(), ARTIFACTS_BUCKET, artifact_id, path, sha256=sha256)

    async def log(self, project: str, sandbox: str, stream: Stream, data: bytes) -> None:
        """Some output of a sandbox. Refused rather than dropped when the bus cannot take it: it can wait in its file."""
        bus = await self._bus()
        if self._writer is None or not bus.is_connected or self._writer.buffered > LOGS_AHEAD:
            raise Refused("bus.unavailable", "the bus does not take more output now", retryable=True)
        self._writer.write(project, sandbox, stream, data)

    async def usage(self, bodies: Iterator[bytes]) -> None:
        """What sandboxes use, if the bus is there; it is said again soon."""
        if self._future().done():
            await usage.tell(await self._bus(), self._options.node, bodies)

    async def token(self, project: str, sandbox: str) -> identity.Token:
        """A token for a sandbox of this node. Raises ``Refused``."""
        return await identity.ask(await self._bus(), self._options.node, project, sandbox)

    def chunks(self) -> Chunks:
        """Where snapshots are kept for everybody."""

        async def missing(digests: Iterable[str]) -> set[str]:
            return await ask_missing(await self._bus(), digests)

        async def put(digest: str, content: bytes) -> int:
            return await chunks.put(await self._bus(), digest, content)

        async def get(digest: str) -> bytes:
            return await chunks.get(await self._bus(), digest)

        async def describe(project: str, snapshot: str, kind: str, about: str, size: int, index: int, names: tuple[str, ...]) -> str:
            return await chunks.put_manifest(await self._bus(), project, snapshot, chunks.Manifest(kind, about, size, index, names))

        async def described(project: str, snapshot: str, manifest: str) -> chunks.Manifest:
            return await chunks.get_manifest(await self._bus(), project, snapshot, manifest)

        return Chunks(missing, put, get, describe, described)

    def shelf(self) -> Shelf:
        """Where artifacts are kept for everybody."""

        async def stat(artifact_id: str) -> objects.Stat | None:
            return await objects.stat(await self._bus(), ARTIFACTS_BUCKET, artifact_id)

        async def put(artifact_id: str, path: Path, sha256: str) -> objects.Stat:
            return await objects.put_file(await self._bus(), ARTIFACTS_BUCKET, artifact_id, path, sha256=sha256)

        async def check(artifact_id: str, sha256: str) -> bool:
            return await objects.check(await self._bus(), ARTIFACTS_BUCKET, artifact_id, sha256)

        return Shelf(stat, put, check)
