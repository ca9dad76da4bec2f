"""What running sandboxes serve, watched for as long as they run, and told when it is not what was told last.

By level, not by event: each look sees everything, so nothing that happened between two looks, or while an agent was away, is missed
(reference/miren-sandbox.md §6.5). A look costs 0.05 ms (``agents.host.ports``). However often ports come and go, a sandbox is told of at
most once in ``TELL_EVERY_S``, and then as it is at that moment.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from agents.drivers.driver import CanWatchPorts, RuntimeFault
from agents.listening import hear, statuses
from agents.node import LocalNode
from agents.records import SandboxRecord
from domain.nodes.orders import Observation, PortStatus, SandboxPorts
from domain.sandboxes.ports import declared as declared_ports

log = structlog.get_logger(__name__)

TICK_S: Final = 0.25
SLOW_S: Final = 2.0
"""How often one is looked at that serves all it declared, or has had ``EAGER_S`` of time for it; others at every tick."""
EAGER_S: Final = 60.0
TELL_EVERY_S: Final = 5.0
PATIENCE_S: Final = 2.0
"""How long one look may take: a guest has to answer it."""


@dataclass(slots=True)
class _Watch:
    """One generation of a sandbox. Times are the loop's. ``told``: None when this agent has not said anything yet."""

    generation: int
    since: float
    told: tuple[PortStatus, ...] | None
    next_look: float = 0.0
    next_word: float = 0.0


class PortWatch:
    """``node.served`` is what was said of ports when a sandbox came up: the first look starts from there."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._watches: dict[str, _Watch] = {}

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look(asyncio.get_running_loop().time())
            await asyncio.sleep(TICK_S)

    async def look(self, now: float) -> None:
        """Look at each sandbox whose turn it is, side by side."""
        live = {record.id: record for record in self._node.memory.sandboxes.values() if _is_watched(record)}
        for gone in self._watches.keys() - live.keys():
            del self._watches[gone]
        for said in [key for key in self._node.served if key[0] not in live]:
            del self._node.served[said]
        due = [(record, watch) for record in live.values() if (watch := self._watch(record, now)).next_look <= now]
        await asyncio.gather(*(self._look_at(record, watch, now) for record, watch in due))

    def _watch(self, record: SandboxRecord, now: float) -> _Watch:
        watch = self._watches.get(record.id)
        if watch is None or watch.generation != record.generation:
            watch = self._watches[record.id] = _Watch(record.generation, now, self._node.served.pop((record.id, record.generation), None))
        return watch

    async def _look_at(self, record: SandboxRecord, watch: _Watch, now: float) -> None:
        seen = await self._seen(record, watch)
        if seen is None:
            watch.next_look = now + SLOW_S
            return
        eager = now - watch.since < EAGER_S and any(port.status != "listening" for port in seen)
        watch.next_look = now if eager else now + SLOW_S
        if seen != watch.told and now >= watch.next_word:
            self._tell(record, watch, seen)
            watch.next_word = now + TELL_EVERY_S

    async def _seen(self, record: SandboxRecord, watch: _Watch) -> tuple[PortStatus, ...] | None:
        """None when it cannot be seen now."""
        driver = self._node.drivers.pick(record.driver)
        if not isinstance(driver, CanWatchPorts):
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                heard = await hear(driver, self._node.handle(record), record.address)
        except (RuntimeFault, TimeoutError, OSError) as error:
            log.info("ports.unseen", sandbox=record.id, error=str(error))
            return None
        return statuses(watch.told or declared(record), heard.served)

    def _tell(self, record: SandboxRecord, watch: _Watch, seen: tuple[PortStatus, ...]) -> None:
        before = {port.port: port.status for port in watch.told or ()}
        for port in seen:
            if before.get(port.port, "declared") != port.status:
                self._node.runtime_line(record.id, f"port {port.port}: {'listening' if port.status == 'listening' else 'closed'}")
        at = self._node.clock()
        body = SandboxPorts(sandbox_id=record.id, generation=record.generation, seen_at=at, ports=seen)
        name = f"{record.id}:{record.generation}:{at.timestamp():.6f}"
        told = self._node.reporter.observe
        told(Observation.SANDBOX_PORTS, body.model_dump(mode="json"), name, project=record.project, sandbox=record.id)
        watch.told = seen


def _is_watched(record: SandboxRecord) -> bool:
    return record.condition == "running" and not record.throwaway and bool(declared(record))


def declared(record: SandboxRecord) -> tuple[PortStatus, ...]:
    """Its ports, as long as nobody knows more: with what they are served on instead, which is written down when it comes up."""
    ports = declared_ports(record.spec.recipe)
    return tuple(PortStatus(port=port, address=record.address, bound=record.bound.get(port)) for port in ports)
