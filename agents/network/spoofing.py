"""What a machine may send on its own link: what comes from its own two addresses, and nothing else.

Whoever is root in a machine gives its interface any address. So a rule stands where the machine's frames come in, in the sandbox's own
namespace, and goes with it. Everything but IPv4 and ARP is dropped: nobody has given the machine an address of another kind.
"""

from __future__ import annotations

import ctypes
import functools
from ipaddress import IPv4Address
from typing import Final

from agents.drivers.driver import RuntimeFault

_TABLE: Final = "strandline"


def hardware_of(address: IPv4Address) -> str:
    """The hardware address that follows from an address, so that no two machines of a node have the same. Bit 1: it is nobody's product."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x53, *address.packed))


def rules(interface: str, address: IPv4Address) -> str:
    """For frames that come in by an interface; put in place of those that were there before."""
    own = hardware_of(address)
    return f"""
add table netdev {_TABLE}
delete table netdev {_TABLE}
table netdev {_TABLE} {{
  chain sent {{ type filter hook ingress device "{interface}" priority 0; policy drop;
    ether saddr {own} ip saddr {address} accept;
    ether saddr {own} arp saddr ether {own} arp saddr ip {address} accept; }}
}}
"""


def forbid(interface: str, address: IPv4Address) -> None:
    """Drop what an interface of this thread's network namespace receives from other addresses than these.

    By libnftables: a process would take as long as the rest of a machine's network. Raises ``network.no-nft``, ``network.rules-refused``.
    """
    nft = _library()
    context = nft.nft_ctx_new(0)
    try:
        nft.nft_ctx_buffer_error(context)
        if nft.nft_run_cmd_from_buffer(context, rules(interface, address).encode()) != 0:
            why = nft.nft_ctx_get_error_buffer(context) or b""
            raise RuntimeFault("network.rules-refused", why.decode(errors="replace").strip()[:1000])
    finally:
        nft.nft_ctx_free(context)


@functools.cache
def _library() -> ctypes.CDLL:
    """What ``nft`` itself is made of (libnftables(3))."""
    try:
        nft = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise RuntimeFault("network.no-nft", "libnftables is not installed (apt-get install nftables)") from error
    nft.nft_ctx_new.argtypes, nft.nft_ctx_new.restype = [ctypes.c_uint32], ctypes.c_void_p
    nft.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    nft.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    nft.nft_ctx_get_error_buffer.argtypes, nft.nft_ctx_get_error_buffer.restype = [ctypes.c_void_p], ctypes.c_char_p
    nft.nft_ctx_free.argtypes, nft.nft_ctx_free.restype = [ctypes.c_void_p], None
    return nft
