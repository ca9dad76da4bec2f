"""A real nats-server per test, and connections to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from nats.aio.client import Client

from bus.connection import connect
from bus.server import Server

Connecting = Callable[[], AbstractAsyncContextManager[Client]]


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    with Server(tmp_path / "nats", sync="2m") as running:
        yield running


@pytest.fixture
def connecting(server) -> Connecting:
    @asynccontextmanager
    async def connecting() -> AsyncIterator[Client]:
        nc = await connect(server.url, name="test", on_closed=lambda: None)
        try:
            yield nc
        finally:
            await nc.close()

    return connecting
