"""A world outside of the node: a namespace of its own behind a bridge, with addresses that are public, private, or whatever is wished."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from support.inside import inside, listen

from agents.network import namespaces
from agents.network.rtnetlink import Route

_PLACE = os.getpid() % 16
"""Test processes that run side by side have worlds side by side."""
NODE, PUBLIC, OTHER = (f"203.0.113.{16 * _PLACE + n}" for n in (1, 2, 3))
PRIVATE = f"192.168.{224 + _PLACE}.2"
_NEAR = (f"{NODE}/28", f"192.168.{224 + _PLACE}.1/28")


@dataclass(frozen=True)
class World:
    netns: Path

    @contextmanager
    def serving(self, *places: tuple[str, int]) -> Iterator[list[socket.socket]]:
        """Somebody listens at each (address, port) as long as the block lasts."""
        with ExitStack() as stack:
            servers = inside(self.netns, lambda: [listen(*place) for place in places])
            yield [stack.enter_context(server) for server in servers]


@contextmanager
def world(directory: Path, addresses: Sequence[str] = (PUBLIC, OTHER, PRIVATE)) -> Iterator[World]:
    """The node reaches it; its own routes lead back to the node's addresses on the same link only."""
    path, tag = directory / "world", os.getpid() % 10**6
    with Route() as host, namespaces.create(path) as (namespace, far):
        bridge = f"slx{tag}"
        host.add_bridge(bridge)
        try:
            near = host.index(bridge) or 0
            host.up(near)
            for address in _NEAR:
                host.add_address(near, IPv4Interface(address))
            host.add_veth(f"slw{tag}", near, "eth0", namespace)
            index = far.index("eth0") or 0
            for address in addresses:
                far.add_address(index, IPv4Interface(f"{address}/28"))
            far.up(index)
            yield World(path)
        finally:
            host.delete(host.index(bridge) or 0)
            namespaces.remove(path)
