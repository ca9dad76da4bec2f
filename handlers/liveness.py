"""Liveness: heartbeats become events only when a node comes or goes (design.md §6.5)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import structlog

from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from handlers.control import Control

log = structlog.get_logger(__name__)


class Liveness:
    """Turns "seen" and "not seen for too long" into the node's own decision."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def seen(self, node_id: str, at: datetime) -> None:
        """A heartbeat; only news for a node that was thought offline."""
        node = self._control.fleet.nodes.get(node_id)
        if node is None or node.online or node.evicted:
            return
        cause = self._control.own_cause(SYSTEM_PROJECT, "node", node_id, "online", at.isoformat())
        await self._try(node_id, cause, lambda n: n.come_online(cause.at))

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
