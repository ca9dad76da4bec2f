"""``node-list`` and ``node-sweep``: what this node holds, and taking away what of that is nobody's by the log's word."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from agents.failures import failure_of
from agents.holdings import artifacts_in_use, busy, holdings
from agents.node import LocalNode
from agents.task import Task
from agents.teardown import take_down
from agents.verbs.replicas import forget
from domain.nodes.sweeps import Holdings, Kind, NodeList, NodeSweep, Removal, Swept, Unremoved, Why

log = structlog.get_logger(__name__)

GRACE_S: Final = 5.0
"""Between SIGTERM and SIGKILL of a process that nobody wants (reference/miren-sandbox.md §7.1)."""
PASS: Final = timedelta(minutes=2)
"""How long one sweep begins something new. What it does not come to is found again by the next one."""
AT_ONCE: Final = 8


async def list_(task: Task, body: NodeList) -> Holdings:
    """Everything that is held, copies of artifacts too."""
    del body
    return await holdings(task.node, "command", artifacts=True)


async def sweep(task: Task, body: NodeSweep) -> Swept:
    """Take away what is listed, unless it is worked on or used by now. One failure never stops the others."""
    node = task.node
    pass_ = _Pass(node, node.clock() + PASS)
    await asyncio.gather(
        *(pass_.take("sandbox", name, why, partial(_sandbox, node, name)) for name, why in body.sandboxes.items()),
        *(pass_.take("artifact", name, why, partial(_artifact, node, name, body.at)) for name, why in body.artifacts.items()),
    )
    return Swept(trigger=body.trigger, removed=tuple(pass_.removed), failed=tuple(pass_.failed), kept=pass_.kept)


class _Pass:
    """One sweep, and what came of it so far. Nothing new is begun after ``until``."""

    def __init__(self, node: LocalNode, until: datetime) -> None:
        self._node = node
        self._until = until
        self._places = asyncio.Semaphore(AT_ONCE)
        self.removed: list[Removal] = []
        self.failed: list[Unremoved] = []
        self.kept = 0

    async def take(self, kind: Kind, name: str, why: Why, remove: Callable[[], Awaitable[bool]]) -> None:
        """``remove``: False when it is not to go any more."""
        async with self._places:
            if self._node.clock() >= self._until:
                self.kept += 1
                return
            try:
                gone = await remove()
            except Exception as error:  # noqa: BLE001 - the others, and the next time
                log.warning("sweep.withstood", kind=kind, id=name, why=why, error=repr(error)[:500])
                self.failed.append(Unremoved(kind=kind, id=name, why=why, error=failure_of(error).message))
                return
            if gone:
                log.warning("sweep.removed", kind=kind, id=name, why=why)
                self.removed.append(Removal(kind=kind, id=name, why=why))
            else:
                self.kept += 1


async def _sandbox(node: LocalNode, name: str) -> bool:
    """Its process, then what it uses: an address is free when the last that may use it is gone."""
    if name in busy(node) or name in node.dooms:
        return False
    await take_down(node, name, GRACE_S)
    return True


async def _artifact(node: LocalNode, name: str, at: datetime) -> bool:
    """Looked at once more: it may be needed again, or be another copy, since it was listed."""
    changed = dict(node.cache.copies()).get(name)
    if changed is None or datetime.fromtimestamp(changed, UTC) > at or name in artifacts_in_use(node):
        return False
    await forget(node, name)
    return True
