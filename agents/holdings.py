"""What this node holds: what its host shows, what its journal knows, copies of artifacts that nothing here needs. It only looks.

The host is listed first and the journal read after it: a record is written before its sandbox's first effect, so nothing that is just being
made is taken for a stranger (reference/miren-sandbox.md §7.1). A listing that fails is named, and is not an empty one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from agents.node import LocalNode
from domain.nodes.orders import Verb
from domain.nodes.sweeps import Holdings, Trigger

log = structlog.get_logger(__name__)


async def holdings(node: LocalNode, trigger: Trigger, *, artifacts: bool) -> Holdings:
    """Everything, as it is now; copies of artifacts only if wanted."""
    at = node.clock()
    shown, unlisted = await _shown(node)
    copies = dict(_unneeded(node, node.cache.copies())) if artifacts else None
    known, worked_on = node.memory.sandboxes, busy(node)
    return Holdings(
        at=at,
        trigger=trigger,
        sandboxes={record.id: record.condition for record in known.values() if not record.throwaway},
        strangers={name: tuple(sorted(where)) for name, where in shown.items() if name not in known and name not in worked_on},
        artifacts=copies,
        unlisted=unlisted,
    )


def busy(node: LocalNode) -> frozenset[str]:
    """Sandboxes that unfinished orders work on, and starts in stock; throw-away ones belong to orders that do not name them."""
    named = {str(trail.order.body.get("sandbox_id", "")) for trail in node.memory.orders.values()}
    preparing = any(trail.order.verb == Verb.REPLICA_PREPARE for trail in node.memory.orders.values())
    return node.stock.names | frozenset(named | {record.id for record in node.memory.sandboxes.values() if record.throwaway and preparing})


async def listed(what: str, listing: Callable[[], Awaitable[Any]]) -> Any:
    """What it lists; None, which is not nothing, when it cannot."""
    try:
        return await listing()
    except Exception:
        log.exception("holdings.unlisted", what=what)
        return None


def log_directories(node: LocalNode) -> frozenset[str]:
    """Of which sandboxes there is output."""
    directory = node.directory / "logs"
    return frozenset(path.name for path in directory.iterdir()) if directory.is_dir() else frozenset()


async def root_names(node: LocalNode) -> Iterable[str]:
    """Which sandboxes have a root."""
    return (await node.roots.list()).roots


async def _shown(node: LocalNode) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Sandboxes that the host shows, with where, and what could not be listed. Processes before what they use."""
    sources: list[tuple[str, Callable[[], Awaitable[Any]]]] = [(driver.name, driver.list) for driver in node.drivers]
    sources += [("network", node.network.list), ("roots", lambda: root_names(node))]
    shown: dict[str, set[str]] = defaultdict(set)
    unlisted = []
    for what, listing in sources:
        found = await listed(what, listing)
        if found is None:
            unlisted.append(what)
        for name in found or ():
            shown[name].add(what)
    for name in log_directories(node):
        shown[name].add("logs")
    return shown, tuple(unlisted)


def _unneeded(node: LocalNode, copies: Iterable[tuple[str, float]]) -> Iterable[tuple[str, datetime]]:
    """Copies under no replica, sandbox or order of this node. Roots and snapshots over one are looked at when it is to go."""
    needed = artifacts_in_use(node)
    return ((name, datetime.fromtimestamp(changed, UTC)) for name, changed in copies if name not in needed)


def artifacts_in_use(node: LocalNode) -> frozenset[str]:
    """By what this node remembers, orders in progress too."""
    over = {record.spec.artifact.artifact_id for record in node.memory.sandboxes.values()}
    ordered = {name for trail in node.memory.orders.values() for name in _artifacts_of(trail.order.body)}
    return frozenset(over | ordered | set(filter(None, node.memory.replicas.values())))


def _artifacts_of(body: Mapping[str, Any]) -> Iterator[str]:
    """Those that an order names, itself or in what it is about."""
    yield str(body.get("artifact_id", ""))
    for holder in (body, body.get("spec")):
        ref = holder.get("artifact") if isinstance(holder, dict) else None
        if isinstance(ref, dict):
            yield str(ref.get("artifact_id", ""))
