"""A draining node gets no new sandboxes; what it has may end by itself, and is stopped when the drain says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers import placing


async def state(place, sandbox: str) -> tuple[SandboxState, str | None]:
    found = await place.get(Sandbox, sandbox)
    return found.state, found.reason


def test_what_runs_goes_on_unless_a_time_is_given_and_is_stopped_when_that_is_over(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        running, paused, short = [await place.sandbox(template) for _ in range(3)]
        await place.do("sandbox.pause", {"sandbox_id": paused, "wait_s": 10})
        await place.do("node.drain", {"node_id": "node-1"})
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "DRAINING")
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.create", {"template": template})
        assert refused.value.code == "capacity.exhausted"
        await place.do("sandbox.set-ttl", {"sandbox_id": short, "ttl_s": 0})
        await eventually(lambda: ended(place, short, "ttl_expired"))
        assert (await state(place, running))[0] is SandboxState.RUNNING
        await place.do("node.drain", {"node_id": "node-1", "stop_after_s": 0.3})
        for sandbox in (running, paused):
            await eventually(lambda sandbox=sandbox: ended(place, sandbox, "node_drained"))
        graces = [order.body["grace_s"] for order in place.node.did(Verb.SANDBOX_DESTROY) if order.key in {running, paused}]
        assert graces == [10, 10]

    async def ended(place, sandbox: str, why: str) -> bool:
        return await state(place, sandbox) == (SandboxState.DEAD, why)

    at(test)


def test_a_sandbox_that_was_placed_before_the_drain_was_known_is_stopped_too_and_an_uncordoned_node_keeps_its_own(at, monkeypatch) -> None:
    real = placing.candidate

    async def test(place) -> None:
        template = await place.template()
        kept = await place.sandbox(template)
        await place.do("node.drain", {"node_id": "node-1", "stop_after_s": 600})
        await place.do("node.uncordon", {"node_id": "node-1"})
        await place.plane.processes.pump(("node", "system", "node-1"))
        assert (await state(place, kept))[0] is SandboxState.RUNNING
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_DESTROY
        await place.do("node.drain", {"node_id": "node-1", "stop_after_s": 0})
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].scheduling == "DRAINING")
        # as a control plane places that has not read that far
        monkeypatch.setattr(placing, "candidate", lambda node, *a, **kw: real(replace(node, scheduling="OPEN"), *a, **kw))
        late = (await place.do("sandbox.create", {"template": template}))["sandbox_id"]

        async def both_end() -> bool:
            return [(await state(place, sandbox)) for sandbox in (kept, late)] == [(SandboxState.STOPPED, "node_drained")] * 2

        await eventually(both_end)

    at(test)
