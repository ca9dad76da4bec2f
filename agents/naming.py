"""Names of sandboxes: what the node's resolver answers with (reference/miren-sandbox.md §4.6).

Nothing is registered and nothing can be forgotten: who has a name is read off what the node has, at the moment of the question. So a name
goes with its sandbox, and an address that another one has by now is never answered for the one that had it before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import structlog

from agents.network.netns import BridgeNetwork
from agents.node import LocalNode
from agents.provisioning import hostname
from agents.records import SandboxRecord

log = structlog.get_logger(__name__)

SERVICE: Final = "service"
"""The label by which several sandboxes have one name together (reference/miren-sandbox.md §1.2)."""
RESOLV_CONF: Final = Path("/etc/resolv.conf")
_THERE: Final = frozenset({"starting", "running", "paused", "replacing"})


@contextlib.asynccontextmanager
async def serving_names(node: LocalNode, resolv_conf: Path = RESOLV_CONF) -> AsyncIterator[None]:
    """Answer the sandboxes of the node's bridge, if it has one, as long as the block lasts.

    Where somebody else has the port, sandboxes have no names, and egress by domain is refused.
    """
    from agents.network.resolver import PORT, Asker, Book, Resolver  # noqa: PLC0415 - only a node with a bridge needs it

    network = node.network
    if not isinstance(network, BridgeNetwork):
        yield
        return

    def asker(address: IPv4Address) -> Asker | None:
        record = node.find(network.owner(address) or "")
        return None if record is None else Asker(record.project, record.spec.egress)

    def named(project: str, host: str) -> list[IPv4Address]:
        records = (record for record in node.memory.sandboxes.values() if record.project == project and record.condition in _THERE)
        found = (network.address(record.id) for record in records if host in names(record))
        return [address for address in found if address is not None]

    book = Book(asker, named, network.learn, network.lets_out)
    resolver = Resolver(book, upstreams(resolv_conf))
    try:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: resolver, local_addr=(str(network.gateway), PORT))
        network.resolves = True
    except OSError as error:
        log.warning("names.unserved", address=str(network.gateway), error=str(error))
    try:
        yield
    finally:
        network.resolves = False
        resolver.close()


def names(record: SandboxRecord) -> set[str]:
    """Under which a sandbox is found in its project: its id, its host name, and its service."""
    service = record.spec.labels.get(SERVICE, "").lower()
    return {record.id, hostname(record), *([service] if service else [])}


def upstreams(resolv_conf: Path) -> list[tuple[str, int]]:
    """The name servers that the node itself asks, at most three, as its resolver takes them."""
    found = []
    with contextlib.suppress(OSError):
        for line in resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                found.append((words[1], 53))
    return found[:3]
