"""Connections to a test's own server, with the streams of the product on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.connection import Connection, connect
from bus.server import Cluster, Server
from bus.streams import Settings, ensure_streams


@asynccontextmanager
async def connected(
    server: Server | Cluster, *, name: str = "test", streams: bool = True, settings: Settings | None = None
) -> AsyncIterator[Connection]:
    """A connection that ends with the block and never ends the process; ``streams`` are replicated when ``server`` is a cluster."""
    nc = await connect(server.url, name=name, on_closed=lambda: None)
    try:
        if streams:
            await ensure_streams(nc, settings=settings or Settings(replicas=3 if isinstance(server, Cluster) else 1))
        yield nc
    finally:
        await nc.close()
