"""A control plane and a real agent on a real bus, in this process, so that a test can stop the agent's work at a certain place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import leftovers
from support.agents import describe
from support.bus import connected
from support.waiting import eventually

from agents.agent import Agent
from agents.options import Options
from agents.purge import purge
from bus.client import Caller
from bus.connection import Connection
from bus.server import Server
from bus.subjects import ARTIFACTS_BUCKET
from domain import catalogue
from domain.nodes.orders import Report, ReportKind
from handlers.plane import ControlPlane

NODE = "node-1"


@dataclass
class Household:
    """``reports``: everything that the node has said."""

    nc: Connection
    plane: ControlPlane
    agent: Agent
    reports: list[Report] = field(default_factory=list)

    async def do(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """The result of a command in the project ``default``."""
        return dict((await Caller(self.nc).command("default", name, body))["result"])

    async def get(self, cls: type[Any], identifier: str) -> Any:
        return (await self.plane.control.store.load(cls, "default", identifier)).aggregate

    def failures(self, verb: str) -> list[str]:
        """Codes with which orders of this verb have failed."""
        return [r.error.code for r in self.reports if r.verb == verb and r.kind is ReportKind.FAILED and r.error is not None]

    async def left(self) -> dict[str, Any]:
        """What there is, on the host and in the object store, of templates, snapshots and sandboxes, and of what was begun for them."""
        node, place = self.agent.node, self.agent.directory
        there = await node.roots.list()
        found: dict[str, Any] = {
            "stored": (await self.nc.jetstream().stream_info(f"OBJ_{ARTIFACTS_BUCKET}")).state.messages,
            "roots": {*there.roots, *there.snapshots, *there.artifacts},
            "files": [path.name for part in ("build", "artifacts", "logs") if (place / part).exists() for path in (place / part).iterdir()],
            "addresses": await node.network.list(),
            "processes": {name for driver in node.drivers for name in await driver.list()},
            "records": {*node.memory.orders, *node.memory.sandboxes, *node.memory.replicas},
        }
        return {what: names for what, names in found.items() if names}


@asynccontextmanager
async def ruled(server: Server, directory: Path, node: str = NODE) -> AsyncIterator[tuple[Connection, ControlPlane]]:
    """A control plane on a bus, and a node that it has enrolled, whose agent is somebody else's affair."""
    catalogue.load()
    describe(server, directory)
    async with connected(server) as nc:
        plane = await ControlPlane.open(nc)
        await plane.start()
        try:
            await Caller(nc).command("default", "node.enroll", {"node_id": node})
            yield nc, plane
        finally:
            await plane.close()


@asynccontextmanager
async def household(server: Server, directory: Path, driver: str) -> AsyncIterator[Household]:
    """Everything has started, and the node is there; afterwards nothing of it is."""
    async with ruled(server, directory) as (nc, plane):
        house = Household(nc, plane, Agent(Options(directory, NODE, driver)))

        async def hear(message: Any) -> None:
            house.reports.append(Report.model_validate_json(message.data))

        await nc.subscribe("strand.rpt.>", cb=hear)
        try:
            await house.agent.start()
            await eventually(plane.control.fleet.healthy_nodes)
            yield house
        finally:
            await house.agent.close()
            leftovers.remember(directory)
            await purge(house.agent.options)
