"""Sandboxes that are paused when nobody uses them and wake up when somebody does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from support.places import refusal
from support.waiting import eventually

from domain.nodes.orders import Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState


def execute(place, sandbox: str, **more):
    return place.do("sandbox.exec", {"sandbox_id": sandbox, "cmd": ["true"], **more})


async def is_paused(place, sandbox: str) -> bool:
    return (await place.get(Sandbox, sandbox)).state is SandboxState.PAUSED


def test_one_that_nobody_uses_is_paused_and_an_exec_wakes_it_up_again_and_again(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandbox = await place.sandbox(template, ttl_s=0.2, ttl_kind="idle", on_ttl="pause", auto_resume=True)
        for times in (1, 2):
            await eventually(lambda: is_paused(place, sandbox))
            assert (await execute(place, sandbox))["exit_code"] == 0
            assert len(place.node.did(Verb.SANDBOX_RESUME)) == times
        await eventually(lambda: is_paused(place, sandbox))

    at(test)


def test_many_who_come_at_once_while_it_is_being_paused_wake_it_up_once(at) -> None:
    """Also one that has no time to live: whoever paused it."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), auto_resume=True)
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_PAUSE
        await place.do("sandbox.pause", {"sandbox_id": sandbox})
        users = [asyncio.create_task(execute(place, sandbox)) for _ in range(8)]
        await eventually(lambda: bool(place.node.did(Verb.SANDBOX_PAUSE)))
        assert not place.node.did(Verb.SANDBOX_EXEC)
        await place.node.answer(place.node.did(Verb.SANDBOX_PAUSE)[0])
        assert {user["exit_code"] for user in await asyncio.gather(*users)} == {0}
        assert len(place.node.did(Verb.SANDBOX_RESUME)) == 1

    at(test)


def test_one_that_does_not_wake_up_by_itself_stays_paused(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), ttl_s=600, ttl_kind="idle", on_ttl="pause")
        await place.do("sandbox.pause", {"sandbox_id": sandbox, "wait_s": 10})
        assert (await refusal(execute(place, sandbox))).code == "sandbox.illegal-state"
        assert not place.node.did(Verb.SANDBOX_RESUME)

    at(test)


def test_a_program_that_runs_longer_than_the_idle_time_is_not_cut_off(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template(), ttl_s=60, ttl_kind="idle", on_ttl="delete")
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_EXEC
        user = asyncio.create_task(execute(place, sandbox, timeout_s=300))
        await eventually(lambda: bool(place.node.did(Verb.SANDBOX_EXEC)))
        held = (await place.get(Sandbox, sandbox)).ends_at
        assert held > datetime.now(UTC) + timedelta(seconds=300)
        await place.node.answer(place.node.did(Verb.SANDBOX_EXEC)[0])
        await user
        assert (await place.get(Sandbox, sandbox)).ends_at <= datetime.now(UTC) + timedelta(seconds=60)

    at(test)
