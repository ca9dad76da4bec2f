"""What heartbeats say: when each node was last heard, how full its disk is, what it has in use.

Heartbeats are not events, so no view holds them: they are added to answers about nodes as they are now, and to no others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from bus.connection import Client
from bus.heartbeat import watch


class Presence:
    """Listens to heartbeats."""

    def __init__(self) -> None:
        self._heard: dict[str, datetime] = {}
        self._bodies: dict[str, Mapping[str, Any]] = {}

    @asynccontextmanager
    async def listening(self, nc: Client) -> AsyncGenerator[None, None]:
        """Hear every beat while the block runs."""

        async def seen(node: str, at: datetime) -> None:
            self._heard[node], self._bodies[node] = at, beats.said(node)

        async def expired(node: str, _at: datetime) -> None:
            """Only the control plane decides that a node is offline; what it said last is old all the same."""
            self._bodies.pop(node, None)

        beats = watch(nc, seen, expired)
        async with beats:
            yield

    def of_node(self, item: dict[str, Any]) -> dict[str, Any]:
        """The node with the time it was last heard, if that is later than what the log knows, and with what it said then.

        ``used`` stays what the log has placed there; ``reported`` is the node's own account, None for a node that is silent.
        """
        said = self._said(item, item["liveness"] == "ONLINE")
        shown = {**item, "reported": None if said is None else {"used": said.get("used"), "orders": said.get("orders")}}
        if said is not None and (pct := _percent(said)) is not None:
            shown["storage"] = {**item["storage"], "usage_pct": pct}
        heard, known = self._heard.get(item["node_id"]), item["last_seen"]
        if heard is not None and (known is None or datetime.fromisoformat(known) < heard):
            shown["last_seen"] = heard.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return shown

    def of_storage(self, item: dict[str, Any]) -> dict[str, Any]:
        """The node's storage with its usage as it is now; the mode is the log's."""
        said = self._said(item, item["mode"] != "unknown")
        pct = None if said is None else _percent(said)
        return item if pct is None else {**item, "usage_pct": pct}

    def _said(self, item: dict[str, Any], reachable: bool) -> Mapping[str, Any] | None:
        """The last beat of a node that is there; of another one nothing is known (design.md §10.5)."""
        return self._bodies.get(item["node_id"]) if reachable else None


def _percent(said: Mapping[str, Any]) -> float | None:
    pct = said.get("storage_pct")
    return float(pct) if isinstance(pct, int | float) and not isinstance(pct, bool) else None
