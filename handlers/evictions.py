"""Evicting a node for real: its account on the bus is deleted, so that it is disconnected at once, and its lane goes with it (design.md §9).

Only where the installation's keys are at hand: ``<dir>/keys``. Elsewhere the node is refused by what it says, as every evicted node is, and
stays connected until somebody who has the keys deletes its account.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from bus import lanes
from bus.accounts import Authority, delete
from bus.commit import Commit
from bus.connection import Client, connect

log = structlog.get_logger(__name__)


class Evictions:
    """Follows evictions in the log. ``keys`` is the authority's directory, which may not be there."""

    def __init__(self, nc: Client, keys: Path | None) -> None:
        self._nc = nc
        self._keys = keys

    async def on_commit(self, commit: Commit) -> None:
        """Cut off a node that was evicted. Raises ``Refused`` when the bus does not answer; the commit is then delivered again."""
        if commit.type != "node" or not any(event["type"] == "node.evicted" for event in commit.events):
            return
        await lanes.remove(self._nc, commit.id)
        if self._keys is None or not await asyncio.to_thread(self._keys.is_dir):
            return
        authority = await asyncio.to_thread(Authority.load, self._keys)
        account = await asyncio.to_thread(authority.forget, f"node-{commit.id}")
        if account is None:
            return
        url = self._nc.connected_url
        system = await connect(url.geturl() if url else "", name="evictions", creds=self._keys / "system.creds", on_closed=lambda: None)
        async with system:
            await delete(system, authority, account)
        log.info("node.cut-off", node=commit.id)
