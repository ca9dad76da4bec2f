"""What every area's tests share: servers of their own, how to wait, and that nothing is left on the host."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import examples, leftovers, privileges, waiting

from bus.server import Cluster, Server

examples.load()
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"  # as the agent does for ordinary users
os.environ.setdefault("STRAND_VM_WAITING", "0")  # a machine more for each that a test starts, where it is not about them


def pytest_configure() -> None:
    """A run that is told to end (``timeout``, a CI that gives up) clears up like one that is interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    privileges.skip_what_needs_root(items)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    privileges.fail_on_skips(session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    privileges.tell(terminalreporter)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """While its folders are still there."""
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if folder is not None:
        leftovers.remember(folder)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The whole run leaves the host as it was: what any of its tests forgot is named here."""
    base = tmp_path_factory.getbasetemp()
    before = leftovers.of_run(base)
    yield
    assert leftovers.left(lambda: leftovers.of_run(base), before) == {}


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
