"""What a failed creation leaves on its node: counted, blocked, given up by a person, or ended with the node; never forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.nodes.orders import Failure, ReportKind, Verb
from domain.sandboxes.provisioning import Provisioning, ProvisioningState
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Deadlines

pytestmark = pytest.mark.quick

BROKEN = Failure(code="node.mount-busy", message="the root is busy", details={"step": "root"})
QUICK = Deadlines(watchdog_s=0.05)


async def left_behind(place) -> str:
    """A sandbox that could not start, and whose root could not be removed."""
    place.node.refuse = lambda order: BROKEN if order.verb == Verb.SANDBOX_PROVISION else None
    place.node.left = lambda order: {"failed_step": "start", "uncompensated": ["root"]}
    with pytest.raises(Refused) as refused:
        await place.sandbox(await place.template())
    return refused.value.details["sandbox_id"]


async def undo_fails(place, number: int) -> None:
    order = place.node.did(Verb.SANDBOX_PROVISION)[0]
    await place.node.tell(order, ReportKind.FAILED, {"uncompensated": ["root"], "undo": number}, BROKEN, f":undo-{number}")


async def is_(place, sandbox: str, state: ProvisioningState, attempts: int | None = None) -> bool:
    saga = await place.get(Provisioning, sandbox)
    return saga.state is state and attempts in {None, saga.undo_attempts}


def silent(place) -> None:
    """The node does not answer when it is told again, as it is after ten minutes; what it says here is what a test says for it."""
    place.node.hold = lambda order: order.verb == Verb.SANDBOX_DESTROY


def passes(place, **time) -> None:
    """The control plane's clock goes on by that much."""
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(**time)


def test_an_undo_that_fails_three_times_over_an_hour_is_blocked_and_may_be_abandoned(at) -> None:
    async def test(place) -> None:
        sandbox = await left_behind(place)
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.DEAD
        await undo_fails(place, 1)
        await eventually(lambda: is_(place, sandbox, ProvisioningState.UNDOING, 2))
        with pytest.raises(Refused, match="UNDOING") as refused:
            await place.do("sandbox.abandon", {"sandbox_id": sandbox})
        assert refused.value.code == "sandbox.undo-blocked"
        silent(place)
        passes(place, minutes=61)
        await undo_fails(place, 2)
        await eventually(lambda: is_(place, sandbox, ProvisioningState.BLOCKED))
        saga = await place.get(Provisioning, sandbox)
        commits = await place.plane.control.store.read("default", "provisioning", sandbox)
        told = [e["data"]["failure"] for c in commits for e in c.events if e["type"] == "provisioning.undo-failed"]
        assert (saga.uncompensated, told[-1]["code"], told[-1]["details"]) == (("root",), BROKEN.code, {"step": "root"})
        assert (await place.do("sandbox.abandon", {"sandbox_id": sandbox}))["uncompensated"] == ["root"]
        assert await is_(place, sandbox, ProvisioningState.ABANDONED)

    at(test)


def test_a_blocked_undo_that_works_after_all_is_over(at) -> None:
    async def test(place) -> None:
        sandbox = await left_behind(place)
        silent(place)
        passes(place, minutes=61)
        await undo_fails(place, 1)
        await undo_fails(place, 2)
        await eventually(lambda: is_(place, sandbox, ProvisioningState.BLOCKED))
        await place.node.tell(place.node.did(Verb.SANDBOX_PROVISION)[0], ReportKind.FAILED, {"undo": 1}, BROKEN, ":late")
        await eventually(lambda: is_(place, sandbox, ProvisioningState.FAILED))

    at(test)


def test_a_node_that_says_nothing_of_an_undo_is_told_to_take_everything_down(at) -> None:
    async def test(place) -> None:
        sandbox = await left_behind(place)
        assert await is_(place, sandbox, ProvisioningState.UNDOING)
        assert not place.node.did(Verb.SANDBOX_DESTROY)
        place.node.refuse = lambda order: BROKEN if order.attempt == 2 else None
        passes(place, minutes=11)
        await eventually(lambda: is_(place, sandbox, ProvisioningState.UNDOING, 2))
        passes(place, minutes=22)
        await eventually(lambda: is_(place, sandbox, ProvisioningState.FAILED))
        assert [order.attempt for order in place.node.did(Verb.SANDBOX_DESTROY)] == [2, 3]

    at(test, QUICK)


@pytest.mark.parametrize("blocked", [False, True], ids=["undoing", "blocked"])
def test_an_undo_ends_with_the_eviction_of_its_node(at, blocked: bool) -> None:
    async def test(place) -> None:
        sandbox = await left_behind(place)
        if blocked:
            silent(place)
            passes(place, minutes=61)
            await undo_fails(place, 1)
            await undo_fails(place, 2)
            await eventually(lambda: is_(place, sandbox, ProvisioningState.BLOCKED))
        await place.do("node.evict", {"node_id": "node-1"})
        await eventually(lambda: is_(place, sandbox, ProvisioningState.ABANDONED))
        assert (await place.get(Provisioning, sandbox)).uncompensated == ("root",)
        assert not [key for key in place.plane.control.fleet.open if key[0] == "provisioning"]

    at(test)


async def left_alone(place) -> str:
    """A sandbox whose node got another program while it came up."""
    place.node.hold = lambda order: order.verb == Verb.SANDBOX_PROVISION
    sandbox = (await place.do("sandbox.create", {"template": await place.template()}))["sandbox_id"]
    order = (await eventually(lambda: place.node.did(Verb.SANDBOX_PROVISION)))[0]
    unknown = Failure(code="order.incompatible", message="it is an unfinished create-sandbox/1", details={"steps": ["root"]})
    await place.node.tell(order, ReportKind.STEP, {"first": 0, "steps": []}, unknown, ":incompatible")
    await eventually(lambda: is_(place, sandbox, ProvisioningState.BLOCKED))
    return sandbox


def test_what_its_node_cannot_go_on_with_is_blocked_and_a_delete_ends_it(at) -> None:
    """reference/miren-sandbox.md §11.30."""

    async def test(place) -> None:
        sandbox = await left_alone(place)
        saga = await place.get(Provisioning, sandbox)
        assert (saga.failure.code, saga.uncompensated) == ("order.incompatible", ("root",))
        assert not place.node.did(Verb.SANDBOX_DESTROY), "nothing is undone by itself"
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})
        await eventually(lambda: is_(place, sandbox, ProvisioningState.FAILED))

    at(test)


def test_what_its_node_cannot_go_on_with_may_come_up_after_all(at) -> None:
    async def test(place) -> None:
        sandbox = await left_alone(place)
        await place.node.answer(place.node.did(Verb.SANDBOX_PROVISION)[0])
        await eventually(lambda: is_(place, sandbox, ProvisioningState.COMPLETED))
        assert not [key for key in place.plane.control.fleet.open if key[0] == "provisioning"]

    at(test)


def test_a_creation_on_a_node_that_is_evicted_is_superseded(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_PROVISION
        sandbox = (await place.do("sandbox.create", {"template": template}))["sandbox_id"]
        await eventually(lambda: place.node.did(Verb.SANDBOX_PROVISION))
        await place.do("node.evict", {"node_id": "node-1"})
        await eventually(lambda: is_(place, sandbox, ProvisioningState.SUPERSEDED))
        await eventually(lambda: is_dead(place, sandbox))

    at(test)


async def is_dead(place, sandbox: str) -> bool:
    return (await place.get(Sandbox, sandbox)).state is SandboxState.DEAD
