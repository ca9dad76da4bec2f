"""Which snapshots are here: told as they are, and not told when they cannot be listed."""

from __future__ import annotations

import pytest
from support.local_node import SNAPSHOT
from support.waiting import run

from agents import presence
from agents.drivers.driver import RuntimeFault
from domain.nodes.orders import Observation, Verb


def test_a_node_tells_which_snapshots_it_has(rig) -> None:
    async def scenario() -> None:
        async with rig.life() as node:
            sandbox = await rig.up()
            await rig.tell(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": sandbox, "snapshot_id": SNAPSHOT})
            await presence.tell(node, "boot")
            (said,) = await rig.eventually(lambda: [report for report in rig.reports if report.verb == Observation.SNAPSHOTS])
            assert said.body["snapshots"] == [SNAPSHOT]

            async def fails() -> None:
                raise RuntimeFault("storage.broken", "no listing")

            node.roots.list = fails
            with pytest.raises(RuntimeFault):
                await presence.tell(node, "boot")
            del node.roots.list
            assert len([report for report in rig.reports if report.verb == Observation.SNAPSHOTS]) == 1

    run(scenario())
