"""Places whose control plane or node can be killed, what is asked of them, and that nothing is left in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from support.bus import connected
from support.mortal import Life, Mortal
from support.node import ScriptedNode
from support.places import Place
from support.waiting import eventually

from bus.client import Caller
from bus.server import Server
from bus.streams import lane_stream
from bus.subjects import ARTIFACTS_BUCKET, EVENTS, REPORTS, SUBMIT, TIMERS
from domain import catalogue
from domain.kernel.errors import Refused
from domain.templates.job import Job
from handlers.control import Deadlines

QUICK = Deadlines(watchdog_s=0.05)


@dataclass
class MortalPlace(Place):
    """``killed`` makes room for the next control plane, or the next process of the node."""

    server: Server
    control: Mortal
    node_life: Life

    async def control_killed(self) -> None:
        """The control plane is dead, and another one in its place."""
        await self.control.life.kill()
        await self._unheard(EVENTS, REPORTS, TIMERS, SUBMIT)
        self.control = Mortal(self.server, QUICK)
        self.plane = await self.control.start()

    async def node_killed(self) -> None:
        """The node's process is dead."""
        await self.node_life.kill()
        await self._unheard(lane_stream("node-1", 1))

    async def _unheard(self, *streams: str) -> None:
        """Until the server knows it too: what it delivers to a connection that is gone comes again after half a minute only."""

        async def is_so() -> bool:
            said = [info for stream in streams for info in await self.nc.jetstream().consumers_info(stream)]
            return not any(info.num_waiting for info in said)

        await eventually(is_so)

    async def node_started(self) -> None:
        """Another process of the node."""
        self.node_life = Life()
        self.node = await node_of(self.server, self.node_life)


async def node_of(server: Server, life: Life) -> ScriptedNode:
    """A process of the node."""
    async with life.lived(server, "node-1") as nc:
        node = ScriptedNode(nc)
        await node.__aenter__()
    return node


@asynccontextmanager
async def mortal(server: Server) -> AsyncIterator[MortalPlace]:
    """A control plane and a node, each on a connection of its own, and a caller who lives on."""
    catalogue.load()
    async with connected(server) as nc:
        control, node_life, caller = Mortal(server, QUICK), Life(), Caller(nc)
        plane = await control.start()
        await caller.command("default", "node.enroll", {"node_id": "node-1"})
        place = MortalPlace(nc, plane, await node_of(server, node_life), caller, server, control, node_life)
        await eventually(place.plane.control.fleet.healthy_nodes)
        try:
            yield place
        finally:
            await place.node_life.kill()
            await place.control.life.kill()


@contextmanager
def said(moment: str) -> Iterator[None]:
    """What goes wrong in the block names the moment."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"killed at {moment}")
        raise


async def asked(place: Place, command: str) -> dict[str, Any]:
    """The body of the command, and what has to be there for it."""
    if command == "template.create":
        return {"image": "oci:/images/demo", "alias": "base"}
    template = await place.template(alias="base")
    if command.startswith("template.") and command != "template.commit":
        return {"template": template, **({"mode": "ALL"} if command == "template.redo" else {})}
    box = await place.sandbox(template)
    if command in {"template.commit", "snapshot.create"}:
        return {"sandbox_id": box}
    taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 10}))["snapshot_id"]
    return {"snapshot_id": taken, **({"sandbox_id": box} if command == "sandbox.rollback" else {})}


async def ended(place: Place, job: str) -> Job | None:
    """The job, if it has ended."""
    found: Job = await place.get(Job, job)
    return None if found.active else found


async def all_deleted(place: Place) -> None:
    """Delete whatever there is. Afterwards nothing is unfinished, and no bytes are left."""
    fleet = place.plane.control.fleet
    for box in list(fleet.sandboxes):
        await place.do("sandbox.delete", {"sandbox_id": box, "wait_s": 10})
    for _, snapshot in list(fleet.snapshots_on["node-1"]):
        with suppress(Refused):  # it is being deleted
            await place.do("snapshot.delete", {"snapshot_id": snapshot, "wait_s": 10})
    for template in list(fleet.wants.templates):
        with suppress(Refused):
            await place.do("template.delete", {"template": template, "wait_s": 10})
    await place.do("artifact.collect", {})  # builds that failed
    await eventually(lambda: not (fleet.open or fleet.wants.templates or fleet.replicas or fleet.artifacts or fleet.snapshots_on["node-1"]))
    left = await place.nc.jetstream().stream_info(f"OBJ_{ARTIFACTS_BUCKET}", subjects_filter=f"$O.{ARTIFACTS_BUCKET}.C.>")
    assert not left.state.subjects, "no chunk of an artifact is left"
