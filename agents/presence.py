"""Telling which snapshots are here, at the start and every few minutes: a lost one is noticed before its use (cubesandbox.md §5.6)."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from agents.node import LocalNode
from domain.nodes.orders import Observation, SnapshotsSeen

log = structlog.get_logger(__name__)

AT_MOST: Final = 20_000
"""Snapshots that one report can name."""


async def telling(node: LocalNode, boot: str) -> None:
    """Tell, for ever. A listing that fails is no listing: nothing is told then."""
    while True:
        try:
            await tell(node, boot)
        except Exception as error:  # noqa: BLE001 - next time
            log.warning("presence.unlisted", error=repr(error)[:300])
        await asyncio.sleep(node.settings.presence_s)


async def tell(node: LocalNode, boot: str) -> None:
    """Say what is here now. Raises what the listing raises."""
    at = node.clock()
    snapshots = sorted((await node.roots.list()).snapshots)
    if len(snapshots) > AT_MOST:
        log.warning("presence.too-many", snapshots=len(snapshots))
        return
    seen = SnapshotsSeen(at=at, snapshots=tuple(snapshots))
    node.reporter.observe(Observation.SNAPSHOTS, seen.model_dump(mode="json"), f"{boot}:{at.timestamp():.6f}")
