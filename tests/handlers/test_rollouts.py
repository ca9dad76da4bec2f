"""Rolling upgrades through the bus: no template is ever without a ready replica that sandboxes can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.waiting import eventually
from support.watched import Watched, watched

from domain.kernel.errors import Refused
from domain.nodes.orders import Failure, Verb
from domain.nodes.rollout import Rollout
from handlers.control import Deadlines
from handlers.plane import ControlPlane
from handlers.processes import rollouts

QUICKLY = Deadlines(watchdog_s=0.2)


class Upgrader:
    """Whoever upgrades machines: does so when the log says that a node is empty."""

    def __init__(self, w: Watched, **versions: str) -> None:
        self.w, self.versions, self.done = w, versions, []

    async def run(self, rollout_id: str, until: str = "COMPLETED") -> dict[str, Any]:
        """Upgrade every node whose time it is, until the rollout has ended like that; its row."""

        async def over() -> dict[str, Any] | None:
            [row] = await self.w.ask("get", "rollouts", id=rollout_id)
            for node, step in row["nodes"].items():
                if step == "UPGRADING" and node not in self.done:
                    self.done.append(node)
                    assert self.w.place.plane.control.fleet.nodes[node].sandboxes == 0
                    await self.w.runs(node, **self.versions)
            return row if row["state"] == until else None

        return await eventually(over, within=30)


def startable(w: Watched) -> dict[str, int]:
    """Template → replicas that a sandbox could start from at this moment, as placement sees it."""
    nothing = Rollout.create("ro-" + "0" * 24, w.place.plane.control.clock(), (), w.place.node.versions)
    return {template: len(nodes) for template, nodes in rollouts.usable(w.place.plane.control, nothing).items()}


@pytest.mark.quick
def test_a_fleet_is_upgraded_a_few_nodes_at_a_time_and_every_template_stays_startable(at, tmp_path: Path) -> None:
    """50 nodes; the number of replicas that each template can be started from is looked at after every commit."""

    async def test(place) -> None:
        names = [f"node-{n}" for n in range(2, 51)]
        async with watched(place, tmp_path, *names) as w:
            spread = [["node-1", "node-2"], [f"node-{n}" for n in range(3, 11)], ["node-1", "node-7", *names[-6:]]]
            made = [await place.template(memory_mb=64 + n, nodes=nodes) for n, nodes in enumerate(spread)]
            for node in ("node-1", "node-7"):
                await place.sandbox(made[2], node=node, ttl_s=3600)
            fewest = dict.fromkeys(made, 99)
            fold = place.plane.control.fleet.apply

            def watching(commit) -> None:
                fold(commit)
                now = startable(w)
                fewest.update({template: min(fewest[template], now.get(template, 0)) for template in made})

            place.plane.control.fleet.apply = watching
            started = await place.do("rollout.start", {"all": True, "guest_image": "2", "at_once": 16, "stop_after_s": 0})
            row = await Upgrader(w, guest_image="2").run(started["rollout_id"])
            assert (row["done"], row["total"], set(row["nodes"].values())) == (50, 50, {"DONE"})
            assert fewest[made[0]] == 1, "its two nodes one after the other"
            assert min(fewest.values()) >= 1
            assert {cell for template in made for cell in (await w.cells(template)).values()} <= {"OK", "MISSING"}
            nodes = {entry.scheduling for entry in place.plane.control.fleet.nodes.values()}
            assert nodes == {"OPEN"}

    at(test, QUICKLY)


@pytest.mark.quick
def test_a_rollout_goes_on_under_another_control_plane(at, tmp_path: Path) -> None:
    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2") as w:
            template = await place.template()
            started = await place.do("rollout.start", {"all": True, "guest_image": "2"})
            await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "DRAINING")
            await place.plane.close()
            place.plane = await ControlPlane.open(place.nc, deadlines=QUICKLY)
            await place.plane.start()
            row = await Upgrader(w, guest_image="2").run(started["rollout_id"])
            assert row["nodes"] == {"node-1": "DONE", "node-2": "DONE"}
            assert await w.cells(template) == {"node-1": "OK", "node-2": "OK"}
            await place.plane.close()

    at(test, QUICKLY)


@pytest.mark.quick
def test_a_node_that_alone_keeps_a_template_startable_is_left_alone_until_another_one_does(at, tmp_path: Path) -> None:
    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2") as w:
            only = await place.template(nodes=["node-1"])
            started = await place.do("rollout.start", {"nodes": ["node-1"], "agent": "2"})

            async def held() -> bool:
                [row] = await w.ask("get", "rollouts", id=started["rollout_id"])
                return row["held_by"] == [only] and row["nodes"] == {"node-1": "WAITING"}

            await eventually(held)
            await place.sandbox(only)
            await place.do("template.redo", {"template": only, "mode": "ALL", "wait_s": 10})
            row = await eventually(lambda: upgrading(w, started["rollout_id"]))
            assert row["held_by"] == [], "now node-2 has it too"
            assert (await place.do("sandbox.create", {"template": only, "wait_s": 10}))["node_id"] == "node-2"

    async def upgrading(w: Watched, rollout_id: str) -> dict[str, Any] | None:
        [row] = await w.ask("get", "rollouts", id=rollout_id)
        return row if row["nodes"]["node-1"] == "DRAINING" else None

    at(test, QUICKLY)


@pytest.mark.quick
def test_a_replica_that_cannot_be_made_again_ends_the_rollout_and_its_node_stays_drained(at, tmp_path: Path) -> None:
    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2", "node-3") as w:
            await place.template()
            for node in w.nodes.values():
                node.refuse = lambda order: Failure(code="node.disk-full", message="full") if order.verb == Verb.REPLICA_PREPARE else None
            started = await place.do("rollout.start", {"all": True, "guest_image": "2"})
            row = await Upgrader(w, guest_image="2").run(started["rollout_id"], until="FAILED")
            assert row["nodes"] == {"node-1": "MENDING", "node-2": "WAITING", "node-3": "WAITING"}
            assert "node-1" in row["error"]
            assert place.plane.control.fleet.nodes["node-1"].scheduling == "DRAINING"
            await place.do("rollout.cancel", {"rollout_id": started["rollout_id"]})
            await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "OPEN")

    at(test, QUICKLY)


@pytest.mark.quick
def test_a_rollout_that_is_cancelled_opens_the_nodes_it_was_at_and_lets_the_next_one_begin(at, tmp_path: Path) -> None:
    async def test(place) -> None:
        async with watched(place, tmp_path, "node-2") as w:
            await place.template()
            first = await place.do("rollout.start", {"all": True, "guest_image": "2"})
            second = await place.do("rollout.start", {"nodes": ["node-2"], "agent": "2"})
            await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "DRAINING")
            assert (await w.ask("get", "rollouts", id=second["rollout_id"]))[0]["nodes"] == {"node-2": "WAITING"}
            await place.do("rollout.cancel", {"rollout_id": first["rollout_id"]})
            await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "OPEN")
            row = await Upgrader(w, agent="2").run(second["rollout_id"])
            assert row["nodes"] == {"node-2": "DONE"}
            with pytest.raises(Refused) as refused:
                await place.do("rollout.cancel", {"rollout_id": second["rollout_id"]})
            assert refused.value.code == "rollout.illegal-state"
            assert (await place.do("rollout.start", {"nodes": ["node-2"], "agent": "2", "wait_s": 10}))["state"] == "COMPLETED"

    at(test, QUICKLY)
