"""A control plane, scripted nodes, and a projector whose views are asked over the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.node import ScriptedNode
from support.waiting import eventually

from projections.buslog import BusLog
from projections.projector import Projector
from projections.sqlite import SqliteStore
from projections.views import VIEWS


class Watched:
    """A place, and its views."""

    def __init__(self, place: Any, nodes: dict[str, ScriptedNode]) -> None:
        self.place = place
        self.nodes = nodes

    async def ask(self, verb: str, view: str = "compat-matrix", **body: Any) -> list[dict[str, Any]]:
        if "as_of" not in body:
            body["min_seq"] = await self.place.plane.control.store.position()
        return (await self.place.caller.query("default", view, verb, body))["items"]

    async def cells(self, template: str, **body: Any) -> dict[str, str]:
        """Node id → word."""
        [row] = await self.ask("get", id=template, **body)
        return {cell["node_id"]: cell["compat"] for cell in row["nodes"]}

    async def silent(self, *nodes: str) -> None:
        """Nobody hears these any more; until the control plane knows it."""
        plane = self.place.plane
        for node in nodes:
            await plane._liveness.expired(node, datetime.now(UTC))
        await eventually(lambda: not any(plane.control.fleet.nodes[node].online for node in nodes))

    async def runs(self, node: str, **versions: str) -> None:
        """The node says that it runs these now; until the control plane knows it."""
        scripted = self.nodes[node]
        scripted.versions = scripted.versions.model_copy(update=versions)
        await scripted.hello()
        fleet = self.place.plane.control.fleet
        await eventually(lambda: fleet.nodes[node].versions == scripted.versions)

    async def judged_alike(self, template: str) -> None:
        """The view of replicas says what the matrix says."""
        replicas = await self.ask("list", "replicas", template_id=template, status="READY")
        cells = await self.cells(template)
        assert {r["node_id"]: r["compat"] for r in replicas} == {node: word for node, word in cells.items() if word != "MISSING"}


@asynccontextmanager
async def watched(place: Any, path: Path, *more: str) -> AsyncIterator[Watched]:
    """Further nodes beside ``node-1``, and a projector."""
    store = SqliteStore(path / "views.db")
    nodes = {"node-1": place.node, **{name: ScriptedNode(place.nc, name) for name in more}}
    async with Projector(place.nc, store, BusLog(place.nc), VIEWS) as projector:
        await projector.caught_up()
        for name in more:
            await place.do("node.enroll", {"node_id": name})
            await nodes[name].__aenter__()
        await eventually(lambda: len(place.plane.control.fleet.healthy_nodes()) == len(nodes))
        try:
            yield Watched(place, nodes)
        finally:
            for name in more:
                await nodes[name].__aexit__()
    store.close()
