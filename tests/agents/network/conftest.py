"""Sandbox networks on this host's real network stack; every test puts back what it found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import leftovers
from support.waiting import run

from agents.network.netns import BridgeNetwork, NoNetwork, choose_network

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The data directory of a network, whose traces are compared before and after."""
    if shutil.which("nft") is None or isinstance(choose_network(tmp_path / "probe"), NoNetwork):
        pytest.skip("networks need nft and a kernel that has them")
    made = tmp_path / "network"
    made.mkdir()
    before, forwarding = leftovers.traces(tmp_path), FORWARD.read_text()
    yield made
    FORWARD.write_text(forwarding)
    assert leftovers.left(lambda: leftovers.traces(tmp_path), before) == {}


@pytest.fixture
def network(directory: Path) -> Iterator[BridgeNetwork]:
    made = BridgeNetwork(directory)
    run(made.setup())
    yield made
    run(BridgeNetwork(directory).teardown())
