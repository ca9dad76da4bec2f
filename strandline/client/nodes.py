"""Nodes: machines that join, rest and leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Unpack

from domain.nodes.commands import NodeConfigure, NodeCordon, NodeDrain, NodeEnroll, NodeEvict, NodeSweep, NodeUncordon
from strandline.client.call import Call
from strandline.client.items import Node
from strandline.client.noun import Noun
from strandline.client.replies import Accepted, NodeSwept


class Nodes(Noun):
    """``node.*`` and the view ``nodes``. Nodes belong to the installation, so every project sees the same."""

    async def enroll(self, node_id: str, **call: Unpack[Call]) -> Accepted:
        """Make a node known; its agent may then join."""
        return await self._calls.command(NodeEnroll, Accepted, call, node_id=node_id)

    async def evict(self, node_id: str, **call: Unpack[Call]) -> Accepted:
        """Disconnect it and believe it no more, until it is enrolled again."""
        return await self._calls.command(NodeEvict, Accepted, call, node_id=node_id)

    async def cordon(self, node_id: str, **call: Unpack[Call]) -> Accepted:
        """No new sandboxes there."""
        return await self._calls.command(NodeCordon, Accepted, call, node_id=node_id)

    async def uncordon(self, node_id: str, **call: Unpack[Call]) -> Accepted:
        """New sandboxes again."""
        return await self._calls.command(NodeUncordon, Accepted, call, node_id=node_id)

    async def drain(self, node_id: str, *, stop_after_s: float | None = None, **call: Unpack[Call]) -> Accepted:
        """No new sandboxes there, and the ones it has end by themselves; what is left after ``stop_after_s`` seconds is stopped."""
        return await self._calls.command(NodeDrain, Accepted, call, node_id=node_id, stop_after_s=stop_after_s)

    async def sweep(self, node_id: str, *, dry_run: bool = False, **call: Unpack[Call]) -> NodeSwept:
        """Take away what is there and is nobody's; ``dry_run``: only say what that is. Raises ``node.offline``, ``node.unlisted``."""
        return await self._calls.command(NodeSweep, NodeSwept, call, node_id=node_id, dry_run=dry_run)

    async def configure(
        self,
        node_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        cpu_ratio: float | None = None,
        memory_ratio: float | None = None,
        sandboxes_ratio: float | None = None,
        **call: Unpack[Call],
    ) -> Accepted:
        """New labels, all of them anew, and how many times what it has may be promised there; what is None stays."""
        return await self._calls.command(
            NodeConfigure,
            Accepted,
            call,
            node_id=node_id,
            labels=labels,
            cpu_ratio=cpu_ratio,
            memory_ratio=memory_ratio,
            sandboxes_ratio=sandboxes_ratio,
        )

    async def get(self, node_id: str, *, as_of: int | str | None = None) -> Node:
        """One node. Raises ``node.not-found``."""
        return await self._calls.one("nodes", Node, "node", node_id, as_of)

    def list(self, *, as_of: int | str | None = None, limit: int | None = None, **filters: Any) -> AsyncIterator[Node]:
        """Nodes whose fields equal the filters."""
        return self._calls.each("nodes", Node, {**filters, "as_of": as_of}, limit=limit)
