"""Connections to the test's own nats-server, with or without the product's streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest
import structlog
from support.bus import connected

from bus.connection import Connection

Connecting = Callable[..., AbstractAsyncContextManager[Connection]]


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged, instead of the console's tracebacks with every local variable in them."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def connecting(server) -> Connecting:
    """``async with connecting() as nc``; the first connection of a test makes the streams with ``streams=True``."""

    def connecting(*, streams: bool = False) -> AbstractAsyncContextManager[Connection]:
        return connected(server, streams=streams)

    return connecting
