"""When each node was last heard. Heartbeats are not events, so no view holds them: they are added to answers about nodes as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from bus.connection import Client
from bus.heartbeat import watch


class Presence:
    """Listens to heartbeats."""

    def __init__(self) -> None:
        self._heard: dict[str, datetime] = {}

    @asynccontextmanager
    async def listening(self, nc: Client) -> AsyncGenerator[None, None]:
        """Hear every beat while the block runs."""
        async with watch(nc, self._seen, self._expired):
            yield

    async def _seen(self, node: str, at: datetime) -> None:
        self._heard[node] = at

    async def _expired(self, node: str, _at: datetime) -> None:
        """Only the control plane decides that a node is offline."""

    def of_node(self, item: dict[str, Any]) -> dict[str, Any]:
        """The node with the time it was last heard, if that is later than what the log knows."""
        heard = self._heard.get(item["node_id"])
        known = item["last_seen"]
        if heard is None or (known is not None and datetime.fromisoformat(known) >= heard):
            return item
        return {**item, "last_seen": heard.astimezone(UTC).isoformat().replace("+00:00", "Z")}
