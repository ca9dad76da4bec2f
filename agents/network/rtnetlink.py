"""Links, addresses and routes by rtnetlink(7) directly: a helper process per sandbox would cost more than the network itself.

One ``Route`` speaks for the network namespace that its socket was made in. Raises ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface
from typing import Final, Self

_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELNEIGH = 16, 17, 18, 19, 20, 21, 24, 29
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_ERROR: Final = 2

_IFLA_IFNAME, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 12, 18, 28
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER: Final = 1
_BRPORT_ISOLATED: Final = 33
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_NDA_DST: Final = 1
_NESTED: Final = 0x8000
_UP: Final = 0x1
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _name(name: str) -> bytes:
    if len(name) > 15:
        raise ValueError(f"{name!r} is too long for an interface")
    return _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _info(kind: str, data: bytes = b"") -> bytes:
    inside = _attribute(_INFO_KIND, kind.encode()) + (_attribute(_INFO_DATA | _NESTED, data) if data else b"")
    return _attribute(_IFLA_LINKINFO | _NESTED, inside)


def _link(index: int = 0, flags: int = 0, change: int = 0, family: int = socket.AF_UNSPEC) -> bytes:
    return _LINK.pack(family, 0, index, flags, change)


def _address(index: int, address: IPv4Interface) -> bytes:
    body = struct.pack("=BBBBI", socket.AF_INET, address.network.prefixlen, 0, 0, index)
    packed = address.ip.packed
    return body + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


class Route:
    """A conversation with the kernel about one network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        number = next(self._numbers)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, number, 0) + body)
        while True:
            data = self._socket.recv(65536)
            _, answer, _, echoed, _ = _HEADER.unpack_from(data)
            if echoed != number:
                continue
            if answer == _ERROR and (code := -struct.unpack_from("=i", data, _HEADER.size)[0]):
                raise OSError(code, os.strerror(code))
            return data[_HEADER.size :]

    def index(self, name: str) -> int | None:
        """None when there is no such interface."""
        try:
            answer = self._ask(_GETLINK, 0, _link() + _name(name))
        except OSError:
            return None
        return int(_LINK.unpack_from(answer)[2])

    def add_bridge(self, name: str) -> None:
        self._ask(_NEWLINK, _ACK | _CREATE | _EXCL, _link() + _name(name) + _info("bridge"))

    def add_veth(self, name: str, bridge: int, peer: str, namespace: int) -> None:
        """A pair: one end up and in the bridge here, the other in the namespace behind the descriptor ``namespace``."""
        far = _link() + _name(peer) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
        near = _link(flags=_UP, change=_UP) + _name(name) + _attribute(_IFLA_MASTER, struct.pack("=I", bridge))
        self._ask(_NEWLINK, _ACK | _CREATE | _EXCL, near + _info("veth", _attribute(_VETH_PEER | _NESTED, far)))

    def isolate(self, index: int) -> None:
        """A bridge port that reaches the host but no other isolated port."""
        inside = _attribute(_BRPORT_ISOLATED, b"\1")
        self._ask(_SETLINK, _ACK, _link(index, family=socket.AF_BRIDGE) + _attribute(_IFLA_PROTINFO | _NESTED, inside))

    def join(self, index: int, bridge: int) -> None:
        """Make it a port of a bridge."""
        self._ask(_SETLINK, _ACK, _link(index) + _attribute(_IFLA_MASTER, struct.pack("=I", bridge)))

    def move(self, index: int, namespace: int, name: str) -> None:
        """To the network namespace behind a descriptor, where it has that name."""
        self._ask(_SETLINK, _ACK, _link(index) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace)) + _name(name))

    def up(self, index: int) -> None:
        self._ask(_NEWLINK, _ACK, _link(index, _UP, _UP))

    def delete(self, index: int) -> None:
        self._ask(_DELLINK, _ACK, _link(index))

    def add_address(self, index: int, address: IPv4Interface) -> None:
        self._ask(_NEWADDR, _ACK | _CREATE | _EXCL, _address(index, address))

    def delete_address(self, index: int, address: IPv4Interface) -> None:
        self._ask(_DELADDR, _ACK, _address(index, address))

    def forget_neighbour(self, index: int, address: IPv4Address) -> None:
        """Whose hardware has an address behind an interface is asked anew; no matter whether it was known."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(_DELNEIGH, _ACK, struct.pack("=BxHiHBB", socket.AF_INET, 0, index, 0, 0, 0) + _attribute(_NDA_DST, address.packed))

    def add_default_route(self, index: int, gateway: IPv4Address) -> None:
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
        body += _attribute(_RTA_GATEWAY, gateway.packed) + _attribute(_RTA_OIF, struct.pack("=I", index))
        self._ask(_NEWROUTE, _ACK | _CREATE | _EXCL, body)
