"""What a node says is gone, and what goes with an evicted node, is not promised any more."""

from __future__ import annotations

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.kernel.ids import replica_id
from domain.nodes.orders import Failure, ReportKind, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.replica import Replica, ReplicaState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import Template, TemplateState

GONE = Failure(code="snapshot.not-found", message="snapshot is not on node node-1")


def test_a_snapshot_that_its_node_does_not_have_any_more_has_failed(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        one, two = [(await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10}))["snapshot_id"] for _ in range(2)]
        place.node.refuse = lambda order: GONE if order.verb in {Verb.SANDBOX_ROLLBACK, Verb.SANDBOX_PROVISION} else None
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": one, "wait_s": 10})
        assert refused.value.code == "snapshot.not-found"
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.create", {"snapshot_id": two, "wait_s": 10})
        assert refused.value.details["cause"] == "snapshot.not-found"
        for snapshot in (one, two):
            found = await place.get(Snapshot, snapshot)
            assert (found.state, found.last_error) == (SnapshotState.FAILED, GONE.message)
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING

    at(test)


def test_a_template_does_not_count_replicas_of_evicted_nodes(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.do("node.evict", {"node_id": "node-1"})

        async def failed() -> bool:
            found = await place.get(Template, template)
            return (found.state, found.ready, found.failed, found.total) == (TemplateState.FAILED, 0, 1, 1)

        await eventually(failed)
        assert (await place.get(Replica, replica_id(template, "node-1"))).state is ReplicaState.FAILED
        await place.do("node.enroll", {"node_id": "node-1"})
        await place.node.hello()
        await eventually(lambda: bool(place.plane.control.fleet.healthy_nodes()))
        await place.do("template.redo", {"template": template, "mode": "FAILED_ONLY", "wait_s": 10})
        await place.sandbox(template)

    at(test)


def test_a_sandbox_that_takes_long_to_boot_says_so(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_PROVISION
        sandbox = (await place.do("sandbox.create", {"template": template}))["sandbox_id"]
        (order,) = await eventually(lambda: place.node.did(Verb.SANDBOX_PROVISION))
        steps = [{"step": step, "state": "started", "at": order.at.isoformat()} for step in ("artifact", "root")]
        await place.node.tell(order, ReportKind.STEP, {"first": 0, "steps": steps})
        boots = {"step": "start", "state": "started", "at": order.at.isoformat()}
        await place.node.tell(order, ReportKind.STEP, {"first": 2, "steps": [boots]})

        async def boots_now() -> bool:
            return (await place.get(Sandbox, sandbox)).state is SandboxState.NOT_READY

        await eventually(boots_now)
        await place.node.answer(order)

        async def runs() -> bool:
            return (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING

        await eventually(runs)
        assert len(place.node.did(Verb.SANDBOX_PROVISION)) == 1

    at(test)
