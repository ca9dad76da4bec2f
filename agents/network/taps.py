"""A machine's end of its sandbox's network: a tap device, bridged in the sandbox's own namespace to the end of the veth pair that is there.

The machine has then the address that was leased to the sandbox, under a hardware address of its own, and the node's rules hold for it as
for a container (``agents.network.firewall``). A tap goes with the last descriptor of it; nothing has to remove it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final

from agents.host.elsewhere import in_network
from agents.network.rtnetlink import Route
from agents.network.spoofing import forbid

_DEVICE: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_NAME: Final = 16
_INSIDE, _BRIDGE, _TAP = "eth0", "br0", "tap0"


def make() -> tuple[str, int]:
    """A new tap in this network namespace, and the descriptor that it lives by. Raises ``OSError``."""
    fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = f"slt{secrets.token_hex(5)}"
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack(f"{_NAME}sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return name, fd


def possible() -> bool:
    """Whether this process may make taps: tried, not guessed."""
    try:
        os.close(make()[1])
    except OSError:
        return False
    return True


def plug(name: str, netns: Path, address: IPv4Interface) -> None:
    """Move a tap into a sandbox's namespace and bridge it, instead of the namespace itself, to the node. Raises ``OSError``.

    The namespace's end of the pair loses the address: the machine answers for it, and for no other (``agents.network.spoofing``). Raises
    also ``network.no-nft``, ``network.rules-refused``.
    """
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Route() as here:
            here.move(_need(here, name), fd, _TAP)
    finally:
        os.close(fd)
    in_network(netns, lambda: _bridge(address))


def _bridge(address: IPv4Interface) -> None:
    forbid(_TAP, address.ip)
    with Route() as route:
        if route.index(_BRIDGE) is None:
            route.add_bridge(_BRIDGE)
            route.delete_address(_need(route, _INSIDE), address)
        bridge = _need(route, _BRIDGE)
        for port in (_INSIDE, _TAP):
            route.join(_need(route, port), bridge)
            route.up(_need(route, port))
        route.up(bridge)


def _need(route: Route, name: str) -> int:
    index = route.index(name)
    if index is None:
        raise OSError(f"there is no interface {name}")
    return index
