"""A control plane and a scripted node on a server of their own, for tests of what the control plane does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.bus import connected
from support.node import ScriptedNode
from support.waiting import eventually

from bus.client import Caller
from bus.server import Server
from domain import catalogue
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from handlers.control import Deadlines
from handlers.plane import ControlPlane


@dataclass
class Place:
    """What a test of the control plane has in its hands."""

    nc: Any
    plane: ControlPlane
    node: ScriptedNode
    caller: Caller

    async def do(self, name: str, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """The result of a command in the project ``default``."""
        return (await self.caller.command("default", name, body or {}, **more))["result"]

    async def get(self, cls: type[Any], identifier: str, project: str = "default") -> Any:
        """An aggregate."""
        return (await self.plane.control.store.load(cls, project, identifier)).aggregate

    async def template(self, **body: Any) -> str:
        """The id of a template that is READY."""
        return (await self.do("template.create", {"image": "oci:/images/demo", "wait_s": 20, **body}))["template_id"]

    async def sandbox(self, template: str, **body: Any) -> str:
        """The id of a sandbox that runs."""
        return (await self.do("sandbox.create", {"template": template, "wait_s": 20, **body}))["sandbox_id"]


@asynccontextmanager
async def placed(server: Server, deadlines: Deadlines | None = None, **more: Any) -> AsyncIterator[Place]:
    """A control plane, and one enrolled node that has said hello."""
    catalogue.load()
    async with connected(server) as nc:
        plane = await ControlPlane.open(nc, deadlines=deadlines, **more)
        await plane.start()
        try:
            caller = Caller(nc)
            await caller.command("default", "node.enroll", {"node_id": "node-1"})
            async with ScriptedNode(nc) as node:
                place = Place(nc, plane, node, caller)

                async def online() -> bool:
                    found = await place.get(Node, "node-1", SYSTEM_PROJECT)
                    told = [node.drivers for node in plane.control.fleet.healthy_nodes()]  # a heartbeat may be heard before the hello
                    return found is not None and found.status == "ready" and all(told) and bool(told)

                assert await plane.control.waiting.until("node", SYSTEM_PROJECT, "node-1", online, 20)
                yield place
        finally:
            await plane.close()


@asynccontextmanager
async def nodes(place: Place, *names: str) -> AsyncIterator[list[ScriptedNode]]:
    """More nodes, online."""
    async with AsyncExitStack() as stack:
        made = []
        for name in names:
            await place.do("node.enroll", {"node_id": name})
            made.append(await stack.enter_async_context(ScriptedNode(place.nc, name)))
        await eventually(lambda: set(names) <= {node.node_id for node in place.plane.control.fleet.healthy_nodes()})
        yield made


async def refusal(asked: Awaitable[object]) -> Refused:
    """Why what was asked is refused. Raises ``AssertionError`` when it is not."""
    try:
        answer = await asked
    except Refused as refused:
        return refused
    raise AssertionError(f"not refused: {answer}")
