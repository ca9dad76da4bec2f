"""The agent: one process per node, from its start through its work to its end. Wires the parts; decides nothing about sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from agents import reboot
from agents.adoption import adopt, say_what_lives, say_what_was_swept
from agents.builder import Builder
from agents.cache import Cache
from agents.crashpoints import CrashPoints
from agents.drivers.driver import Driver
from agents.fingerprint import Fingerprint, storage_pct, used
from agents.identity import Identities
from agents.journal import Journal
from agents.logs import LogShipper
from agents.metrics import metrics
from agents.naming import serving_names
from agents.network.netns import NoNetwork, choose_network
from agents.node import Drivers, LocalNode
from agents.options import Options
from agents.ownership import own
from agents.portwatch import PortWatch
from agents.presence import telling
from agents.records import Memory
from agents.registry import SIMULATOR, working
from agents.reporting import Reporter
from agents.sealing import SealingKey
from agents.stock import Stock
from agents.stocking import stocking
from agents.storage.all import all_roots
from agents.sweeping import sweeping
from agents.uplink import Uplink
from agents.usage.service import Usage
from agents.vault import Vault
from agents.volumes.store import Volumes
from agents.watchdog import Watchdog
from agents.work import Work
from bus.lanes import LaneReader
from bus.metrics import serving
from bus.tracing import Tracing
from domain.nodes.orders import NodeHello, Observation

log = structlog.get_logger(__name__)

FINISH_S: Final = 3.0
"""How long orders in progress, and then reports, may take when the agent is told to end."""
BROKEN_EXIT: Final = 75
"""EX_TEMPFAIL: start me again; the next process reads what the disk really has."""


class Agent:
    """``start`` takes the host over and begins to work, ``close`` hands it over."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.boot = secrets.token_hex(8)
        self.directory = options.own
        self.uplink = Uplink(options)
        self._tracing = Tracing.configured("strandline-agent")
        self._built = False
        self._stack = contextlib.AsyncExitStack()
        self._loops: list[asyncio.Task[Any]] = []
        self._lane: LaneReader | None = None

    async def start(self) -> None:
        """Recover what runs, resume what was begun, say who is here, take new work. Raises ``NoDriverError``, ``InUseError``."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stack.callback(own(self.directory).close)
        drivers = await working(self.options.driver, self.directory / "drivers")
        self._build(drivers)
        await self.node.network.setup()
        await self._stack.enter_async_context(serving_names(self.node))
        await reboot.notice(self.node)
        adopted = await adopt(self.node)
        self.node.reporter.start()
        self.identities.start()
        self.work.resume()
        told = [await self.say_hello(), say_what_lives(self.node, self.boot, complete=adopted.complete)]
        say_what_was_swept(self.node, self.boot, adopted.swept)
        self._loops += [self._loop(self.logs.run(), "logs"), self._loop(sweeping(self.node), "sweep")]
        self._loops.append(self._loop(telling(self.node, self.boot), "presence"))
        self._loops.append(self._loop(self._watchdog().run(), "watchdog"))
        self._loops.append(self._loop(self.node.network.stock(), "network"))
        self._loops.append(self._loop(stocking(self.node), "stock"))
        self._loops.append(self._loop(self.usage.run(), "usage"))
        self._loops.append(self._loop(PortWatch(self.node).run(), "ports"))
        await self.uplink.connect()
        await asyncio.gather(*told)
        self._lane = await self.uplink.lane(self.work.handle, self.work.arrived)
        await self._lane.start()
        await self._stack.enter_async_context(await self.uplink.beating(self._heartbeat))
        if self.options.metrics_port is not None:
            counted = metrics(self._heartbeat, self.node.memory.sandboxes, self.usage.samples)
            await self._stack.enter_async_context(serving(counted, self.options.metrics_port))
        log.info("agent.ready", node=self.options.node, boot=self.boot, drivers=list(drivers), adopted=len(self.node.memory.sandboxes))

    def _build(self, drivers: dict[str, Driver]) -> None:
        place, options = self.directory, self.options
        journal = Journal.open(place / "journal" / "journal", Memory(), on_broken=lambda: os._exit(BROKEN_EXIT))
        self._stack.callback(journal.close)
        crash, clock = CrashPoints(place), lambda: datetime.now(UTC)
        cache = Cache(place / "artifacts", self.uplink.fetch)
        key = SealingKey.of(place, options.node)
        where = (place, options.dir)
        builder = Builder(place / "build", cache, self.uplink.shelf(), base=Path.cwd(), directories=where, key=key, trust=options.trust)
        builder.clean()
        roots, volumes = all_roots(place / "storage"), Volumes(place / "volumes")
        network = NoNetwork() if set(drivers) == {SIMULATOR} else choose_network(place / "network", egress=options.egress)
        kinds = (roots.kind, volumes.filesystems or (volumes.kind,))
        self.fingerprint = Fingerprint(self.boot, where, drivers.values(), options.promise, key.public, *kinds, egress=network.lets_out)
        self.logs = LogShipper(place / "logs", journal, self.uplink.log)
        self.node = LocalNode(
            name=options.node,
            directory=place,
            drivers=Drivers(drivers),
            roots=roots,
            network=network,
            volumes=volumes,
            cache=cache,
            images=builder,
            vault=Vault(self.uplink.chunks(), crash.here),
            journal=journal,
            reporter=Reporter(options.node, journal, self.uplink.report, clock, crash),
            clock=clock,
            crash=crash,
            creating=asyncio.Semaphore(max(1, len(os.sched_getaffinity(0)))),
            versions=self.fingerprint.versions,
            hello=self._look_again,
            runtime_line=self.logs.runtime_line,
            drain_logs=self.logs.drain,
            settings=options.settings,
            stock=Stock(options.starts_waiting),
        )
        self.usage = Usage(self.node, self.boot, self.uplink.usage)
        self.identities = Identities(self.node, self.uplink.token)
        self.node.changed = self.identities.changed
        self.work = Work(self.node, self._tracing)
        self._built = True

    def _watchdog(self) -> Watchdog:
        return Watchdog(self.node, self.boot, lambda: storage_pct(self.directory), self.options.rhythm)

    def _loop(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(lambda done: done.cancelled() or log.critical("loop.ended", name=name, error=repr(done.exception())))
        return task

    async def _look_again(self) -> NodeHello:
        self.fingerprint.refresh()
        return await self.fingerprint.hello()

    async def say_hello(self) -> asyncio.Task[None]:
        """Look at the node, and say what it is. The task ends when that is stored."""
        hello = await self._look_again()
        name = f"{self.boot}:{self.node.clock().timestamp():.6f}"
        return self.node.reporter.observe(Observation.NODE_HELLO, hello.model_dump(mode="json"), name)

    def _heartbeat(self) -> dict[str, Any]:
        return {
            "boot": self.boot,
            "used": used(self.node.memory.sandboxes).model_dump(),
            "storage_pct": storage_pct(self.directory),
            "orders": len(self.node.memory.orders),
        }

    async def close(self) -> None:
        """Take nothing new, finish or hand over, say goodbye. Sandboxes run on unless the options say otherwise."""
        if self._lane is not None:
            await self._lane.close()
        if self._built:
            await self._hand_over()
        await self._stack.aclose()
        await self.uplink.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _hand_over(self) -> None:
        await self.work.close(FINISH_S)
        if self.options.stop_sandboxes:
            await self._stop_sandboxes()
        if self._lane is not None:
            self.node.reporter.observe(Observation.NODE_BYE, {}, self.boot)
        await self.node.reporter.close(FINISH_S)
        for task in (*self._loops, *self.node.watches.values()):
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self.logs.close()
        self.usage.close()
        await self.identities.close()
        for driver in self.node.drivers:
            await driver.close()

    async def _stop_sandboxes(self) -> None:
        """End their processes; their monitors tell. What they leave goes when the control plane says so."""
        node = self.node
        live = [record for record in node.memory.sandboxes.values() if record.condition in {"running", "paused"}]
        stops = (node.drivers.pick(record.driver).stop(node.handle(record), FINISH_S) for record in live)
        monitors = [task for task in node.watches.values() if not task.done()]
        await asyncio.gather(*stops, return_exceptions=True)
        if monitors:
            await asyncio.wait(monitors, timeout=FINISH_S)
