"""Liveness: heartbeats become events only when a node comes or goes, or its disk crosses a limit (design.md §6.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from bus import heartbeat
from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.storage_modes import STRICTNESS, StorageMode, storage_mode
from handlers.control import Control
from handlers.fleet_entries import NodeEntry

log = structlog.get_logger(__name__)


class Liveness:
    """Turns "seen", "not seen for too long" and "this full" into the node's own decision."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._said: Callable[[str], Mapping[str, Any]] = lambda _node: {}
        self._eased: dict[str, datetime] = {}
        """Nodes whose beats say that their disk allows more than the log knows, since when."""

    def watch(self) -> heartbeat.Watch:
        """Hear every node, while the ``async with`` block runs."""
        watch = heartbeat.watch(self._control.nc, self.seen, self.expired, self._control.deadlines.node_dead_s, expected=self.expected)
        self._said = watch.said
        return watch

    async def seen(self, node_id: str, at: datetime) -> None:
        """A heartbeat; news for a node that was thought offline, and when its disk is in another mode than before."""
        node = self._control.fleet.nodes.get(node_id)
        if node is None or node.evicted:
            return
        pct = _storage_pct(self._said(node_id))
        if not node.online:
            await self._online(node_id, at, pct)
        elif pct is not None and self._changed(node, storage_mode(pct)):
            cause = self._control.own_cause(SYSTEM_PROJECT, "node", node_id, "storage", at.isoformat())
            await self._try(node_id, cause, lambda n: n.change_storage_mode(cause.at, pct))

    async def _online(self, node_id: str, at: datetime, pct: float | None) -> None:
        """It is there again; what it says of its disk is knowledge again."""
        cause = self._control.own_cause(SYSTEM_PROJECT, "node", node_id, "online", at.isoformat())

        def back(node: Node) -> None:
            node.come_online(cause.at)
            if pct is not None:
                node.change_storage_mode(cause.at, pct)

        await self._try(node_id, cause, back)

    def _changed(self, node: NodeEntry, mode: StorageMode) -> bool:
        """Is this mode news? One that allows less, or ends not knowing, at once; one that allows more when it has lasted.

        The reference has no hysteresis, but believes a mode for ten minutes (reference/cubesandbox.md §5.7); every event is kept for ever,
        and a disk that hovers at a limit must not write one at each beat.
        """
        known = StorageMode(node.storage_mode)
        if mode is known or STRICTNESS[mode] > STRICTNESS[known] or known is StorageMode.UNKNOWN:
            self._eased.pop(node.node_id, None)
            return mode is not known
        now = self._control.clock()
        if now - self._eased.setdefault(node.node_id, now) < timedelta(seconds=self._control.deadlines.storage_ease_s):
            return False
        del self._eased[node.node_id]
        return True

    async def expired(self, node_id: str, last_seen: datetime) -> None:
        """No heartbeat for too long. What runs there is not known any more, and not "gone" (design.md §10.5)."""
        node = self._control.fleet.nodes.get(node_id)
        if node is None or not node.online:
            return
        cause = self._control.own_cause(SYSTEM_PROJECT, "node", node_id, "offline", last_seen.isoformat())
        await self._try(node_id, cause, lambda n: n.go_offline(cause.at, last_seen))

    def expected(self) -> list[str]:
        """Nodes that are thought online: one of them that is never heard has to be noticed too."""
        return [node.node_id for node in self._control.fleet.nodes.values() if node.online and not node.evicted]

    async def _try(self, node_id: str, cause: Cause, decide: Callable[[Node], object]) -> None:
        try:
            await self._control.change(Node, SYSTEM_PROJECT, node_id, cause, decide)
        except Refused as refusal:
            log.info("liveness.refused", node=node_id, code=refusal.code)


def _storage_pct(said: Mapping[str, Any]) -> float | None:
    """How full a beat says that the disk is; None when it does not say."""
    pct = said.get("storage_pct")
    return float(pct) if isinstance(pct, int | float) and not isinstance(pct, bool) else None
