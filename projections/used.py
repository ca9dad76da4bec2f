"""What sandboxes use at this moment, as their nodes say it: added to answers of view ``usage`` about now, and to no others.

Samples are not events, so no view holds them (``bus/usage.py``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from bus.connection import Client
from bus.usage import Heard, hearing


class Used:
    """Listens to samples."""

    def __init__(self) -> None:
        self._heard = Heard()

    @asynccontextmanager
    async def listening(self, nc: Client) -> AsyncGenerator[None, None]:
        """Hear every node while the block runs."""
        async with hearing(nc) as self._heard:
            yield

    def of_sandbox(self, item: dict[str, Any]) -> dict[str, Any]:
        """The sandbox with ``measured``: what the node that it is on said last; None for one that ended, or a node that is silent."""
        return item if item["ended_at"] is not None else {**item, "measured": self._heard.of(item["node_id"], item["sandbox_id"])}
