"""What every area's tests share: servers of their own, and how to wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import waiting

from bus.server import Cluster, Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running nats-server with a port and a store of its own (50 ms)."""
    with Server(tmp_path / "nats") as started:
        yield started


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running nats-server for all tests of a module that do not mind each other's streams."""
    with Server(tmp_path_factory.mktemp("nats")) as started:
        yield started


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three running nats-servers that form a JetStream cluster (2 s)."""
    with Cluster(tmp_path / "cluster") as started:
        yield started


@pytest.fixture
def run():
    """``support.waiting.run``."""
    return waiting.run


@pytest.fixture
def eventually():
    """``support.waiting.eventually``."""
    return waiting.eventually
