"""A control plane in this process and a real agent process on one bus: what the log says, and what is really on the host."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from support import leftovers
from support.agents import NODE, Installation, describe
from support.bus import connected
from support.cut import Wire
from support.waiting import eventually

from agents.options import Options
from agents.purge import purge
from bus import direct, objects
from bus.client import Caller
from bus.server import Server
from bus.subjects import ARTIFACTS_BUCKET, EVENTS
from domain import catalogue
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.orders import Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.sandboxes.spec import ArtifactRef, SandboxSpec
from handlers.control import Deadlines
from handlers.plane import ControlPlane

MARK = "KEPT_AS"
"""The variable by which a sandbox's processes are found."""

HEEDS = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
"""Ends when it is asked to."""


@dataclass
class Kept(Installation):
    """``place.send(order)`` puts an order on the lane past the log; ``place.do`` asks the control plane."""

    plane: Any = None
    caller: Any = None

    async def do(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return (await self.caller.command("default", name, body or {}))["result"]

    async def get(self, cls: type[Any], identifier: str, project: str = "default") -> Any:
        return await self.plane.control.find(cls, project, identifier)

    async def node(self) -> Node:
        return await self.get(Node, NODE, SYSTEM_PROJECT)

    async def online(self) -> None:
        await eventually(lambda: bool(self.plane.control.fleet.healthy_nodes()), 20)

    async def past_the_log(self, name: str) -> str:
        """A sandbox that runs on the node and that the log has never heard of."""
        order = await self.send(self.order(Verb.SANDBOX_PROVISION, self.provision(name, env={MARK: name}, cmd=list(HEEDS))))
        await eventually(lambda: pids(name), 20)
        return str(order.body["sandbox_id"])

    async def placed(self, name: str, cmd: Sequence[str] = ("/bin/sleep", "1000"), **more: Any) -> str:
        """The id of a sandbox that the log has placed on the node. It comes up when the node hears of it."""
        provision = self.provision(name, env={MARK: name}, cmd=list(cmd))
        spec, sandbox = SandboxSpec.model_validate({**provision["spec"], **more}), provision["sandbox_id"]
        cause = self.plane.control.own_cause("default", "sandbox", sandbox, "test")

        def create(_: Sandbox | None) -> Sandbox:
            return Sandbox.create(sandbox, cause.at, spec, NODE)

        await self.plane.control.store.transact(Sandbox, "default", sandbox, create, cause, new=True)
        return str(sandbox)

    async def becomes(self, sandbox: str, state: SandboxState) -> Sandbox:
        async def is_so() -> Sandbox | None:
            found = await self.get(Sandbox, sandbox)
            return found if found.state is state else None

        return await eventually(is_so, 20)

    async def swept(self, least: int = 1) -> list[dict[str, Any]]:
        """Everything that the log says was taken away, and why, once that is so much."""

        async def told() -> list[dict[str, Any]]:
            page = await direct.batch(self.nc, EVENTS, f"strand.evt.{SYSTEM_PROJECT}.node.{NODE}", 1)
            events = [event for message in page.messages for event in orjson.loads(message.data)["events"]]
            found = [removed for event in events if event["type"] == "node.swept" for removed in event["data"].get("removed", ())]
            return found if len(found) >= least else []

        return await eventually(told, 20)


def pids(name: str) -> set[int]:
    """Processes of the sandbox that was given this mark, found by nobody's word but the kernel's."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={name}\0".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


@asynccontextmanager
async def kept(
    server: Server, directory: Path, ext4: Path, artifact: ArtifactRef, deadlines: Deadlines | None = None, *, wire: Wire | None = None
) -> AsyncIterator[Kept]:
    """Everything but the agent, which comes to the bus by ``wire`` if there is one. Afterwards no trace of its node."""
    catalogue.load()
    async with connected(server) as nc:
        describe(wire or server, directory)
        await objects.put_file(nc, ARTIFACTS_BUCKET, artifact.artifact_id, ext4, sha256=artifact.sha256)
        plane = await ControlPlane.open(nc, deadlines=deadlines)
        await plane.start()
        try:
            caller = Caller(nc)
            await caller.command("default", "node.enroll", {"node_id": NODE})
            yield Kept(directory, nc, artifact, plane=plane, caller=caller)
        finally:
            await plane.close()
            leftovers.remember(directory)
            await purge(Options(directory, NODE))
