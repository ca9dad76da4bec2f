"""Nodes as members of the bus: an enrolled one has an account of its own, an evicted one is disconnected at once (design.md §9).

Only where the installation's keys are at hand (``<dir>/keys``). Elsewhere an evicted node is refused by what it says, as every evicted one
is, and stays connected until somebody who has the keys deletes its account.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import structlog

from bus import lanes
from bus.accounts import Authority, delete, push
from bus.commit import Commit
from bus.connection import Client, Connection, connect

log = structlog.get_logger(__name__)

ENROLLED = frozenset({"node.enrolled", "node.re-enrolled"})


class Membership:
    """Follows enrolments and evictions in the log. ``keys`` is the authority's directory, which may not be there."""

    def __init__(self, nc: Client, keys: Path | None, shards: int = 1) -> None:
        self._nc = nc
        self._keys = keys
        self._shards = shards

    async def on_commit(self, commit: Commit) -> None:
        """Let a node in, or cut it off. Raises ``Refused`` when the bus does not answer; the commit is then delivered again."""
        names = {event["type"] for event in commit.events} if commit.type == "node" else set()
        if names & ENROLLED:
            await self._let_in(commit.id)
        if "node.evicted" in names:
            await lanes.remove(self._nc, commit.id, shards=self._shards)
            await self._cut_off(commit.id)

    async def _let_in(self, node: str) -> None:
        authority = await self._authority()
        if authority is not None:
            async with await self._system() as system:
                await push(system, await asyncio.to_thread(partial(authority.node, node, shards=self._shards)))
            log.info("node.let-in", node=node)

    async def _cut_off(self, node: str) -> None:
        authority = await self._authority()
        account = None if authority is None else await asyncio.to_thread(authority.forget, f"node-{node}")
        if authority is not None and account is not None:
            async with await self._system() as system:
                await delete(system, authority, account)
            log.info("node.cut-off", node=node)

    async def _authority(self) -> Authority | None:
        if self._keys is None or not await asyncio.to_thread((self._keys / "system.creds").exists):
            return None
        return await asyncio.to_thread(Authority.load, self._keys)

    async def _system(self) -> Connection:
        """A connection with the right to change accounts, to where this process is connected."""
        url = self._nc.connected_url
        tls = self._nc.options.get("tls")
        keys = self._keys or Path()
        return await connect(url.geturl() if url else "", name="membership", creds=keys / "system.creds", on_closed=lambda: None, tls=tls)
