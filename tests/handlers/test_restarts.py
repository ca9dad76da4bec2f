"""What the control plane does for a sandbox that is to come up again: nothing before its time, once then, and not for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.places import refusal
from support.waiting import eventually

from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Deadlines
from handlers.processes import sandboxes

pytestmark = pytest.mark.quick

QUICK = Deadlines(watchdog_s=0.05)


def passes(place: Any, **time: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(**time)


async def crashed(place: Any, sandbox: str, crashes: int) -> None:
    async def is_so() -> bool:
        found = await place.get(Sandbox, sandbox)
        return (found.crashes, found.restarting is not None) == (crashes, True)

    await eventually(is_so)


def test_it_is_started_when_its_time_has_come_and_later_after_each_failure(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), restart="always")
        await place.node.exited("default", sandbox)
        await crashed(place, sandbox, 1)
        await sandboxes.pump(place.plane.control, "default", sandbox)
        assert place.node.did(Verb.SANDBOX_RESTART) == []
        refused = await refusal(place.do("sandbox.pause", {"sandbox_id": sandbox}))
        assert (refused.code, refused.details["operation"]) == ("sandbox.illegal-state", "restart")
        place.node.refuse = lambda order: Failure(code="sandbox.startup-failed", message="no")
        passes(place, seconds=10)
        await crashed(place, sandbox, 2)
        place.node.refuse = lambda order: None
        passes(place, seconds=31)

        async def up() -> bool:
            found = await place.get(Sandbox, sandbox)
            return (found.operation, found.generation) == (None, 2)

        await eventually(up)
        assert [order.body["generation"] for order in place.node.did(Verb.SANDBOX_RESTART)] == [1, 2]

    at(test, QUICK)


def test_one_that_its_node_does_not_bring_up_in_ten_minutes_has_ended(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), restart="always")
        place.node.hold = lambda order: order.verb is Verb.SANDBOX_RESTART
        await place.node.exited("default", sandbox)
        await crashed(place, sandbox, 1)
        passes(place, seconds=611)

        async def dead() -> bool:
            found = await place.get(Sandbox, sandbox)
            return (found.state, found.reason) == (SandboxState.DEAD, "exited")

        await eventually(dead)

    at(test, QUICK)
