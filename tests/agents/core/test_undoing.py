"""A creation that leaves something on its node, from the control plane's order to the last word, with a real node and real sandboxes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.local_node import NoAck
from support.places import placed
from support.sabotage import Sabotage
from support.waiting import eventually

from agents.drivers.driver import RuntimeFault
from agents.provisioning import CREATE_SANDBOX
from agents.verbs import provision
from bus.reports import report
from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from domain.sandboxes.provisioning import Provisioning, ProvisioningState

OURS = {Verb.SANDBOX_PROVISION, Verb.SANDBOX_DESTROY}


def test_what_a_node_cannot_undo_blocks_is_abandoned_or_ends_when_it_can(real, server, run, monkeypatch):
    rig, wrong, broken = real, Sabotage(fails="start:lost"), []
    monkeypatch.setattr(provision, "CREATE_SANDBOX", wrong.of(CREATE_SANDBOX))

    async def scenario():
        async with placed(server) as place:
            rig.name, rig.pass_on, working = "node-1", lambda said: report(place.nc, said), []

            def to_the_rig(order):
                """The scripted node does what templates need; sandboxes are real ones, made of the artifact that is there."""
                if order.verb in OURS:
                    if order.verb is Verb.SANDBOX_PROVISION:
                        order.body["spec"]["artifact"] = rig.artifact.model_dump()
                    working.append(asyncio.create_task(rig.work.handle(order, NoAck())))
                return order.verb in OURS

            async def undoing(sandbox, state, attempts):
                saga = await place.get(Provisioning, sandbox)
                return (saga.state, saga.undo_attempts) == (state, attempts)

            async def failed_start(template):
                broken.append(True)
                with pytest.raises(Refused) as refused:
                    await place.sandbox(template)
                return refused.value.details["sandbox_id"]

            async with rig.life() as node:
                rig.now, detach = datetime.now(UTC), node.network.detach

                async def may_fail(sandbox):
                    if broken:
                        raise RuntimeFault("network.busy", "told to fail")
                    await detach(sandbox)

                node.network.detach = may_fail
                template = await place.template(cmd=["sleep", "1000"])
                place.node.hold = to_the_rig
                first = await failed_start(template)
                assert await undoing(first, ProvisioningState.UNDOING, 1)
                await rig.sweep()
                await eventually(lambda: undoing(first, ProvisioningState.UNDOING, 2))
                rig.now += timedelta(hours=2)
                place.plane.control.clock = lambda: rig.now
                await rig.sweep()
                await eventually(lambda: undoing(first, ProvisioningState.BLOCKED, 3))
                abandoned = await place.do("sandbox.abandon", {"sandbox_id": first})
                assert abandoned["uncompensated"] == ["network", "root", "logs"]
                broken.clear()
                await rig.sweep()
                assert await rig.left() == {}, "the node goes on trying what a person has given up"

                second = await failed_start(template)
                await rig.sweep()
                await eventually(lambda: undoing(second, ProvisioningState.UNDOING, 2))
                broken.clear()
                await rig.sweep()
                await eventually(lambda: undoing(second, ProvisioningState.FAILED, 2))
                assert await rig.left() == {}
                assert rig.states() == set()
                await asyncio.gather(*working)

    async def whole():
        try:
            await scenario()
        finally:
            await real.purged()

    run(whole())
