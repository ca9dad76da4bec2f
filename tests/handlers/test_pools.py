"""Pools on a real bus: filled, refilled, backed off, scaled down, deleted; and sandboxes handed over out of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from support.places import refusal
from support.planes import ask
from support.waiting import eventually

from domain.nodes.orders import Failure, Verb
from domain.sandboxes.pool import Pool, PoolState
from domain.sandboxes.sandbox import Sandbox, SandboxState


async def ready(place, template: str, count: int) -> None:
    async def whole() -> bool:
        pool = await place.get(Pool, template)
        return len(pool.waiting) == count == len(pool.members)

    await eventually(whole)


async def pooled(place, desired: int = 2, **settings) -> str:
    """A template with a pool that is full."""
    template = await place.template(alias="base")
    told = await place.do("pool.set", {"template": "base", "desired": desired, "wait_s": 10, **settings})
    assert (told["settled"], told["current"], told["ready"]) == (True, desired, desired)
    return template


def later(place, seconds: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(seconds=seconds)


def test_a_create_is_a_hand_over_and_the_pool_gets_another_one(at) -> None:
    async def test(place) -> None:
        template = await pooled(place)
        first = (await place.get(Pool, template)).waiting[0]
        started = len(place.node.did(Verb.SANDBOX_PROVISION))
        given = await place.do("sandbox.create", {"template": "base", "ttl_s": 600, "labels": {"team": "a"}, "wait_s": 10})
        assert (given["sandbox_id"], given["state"], given["settled"], given["handed_over"]) == (first, "RUNNING", True, True)
        sandbox = await place.get(Sandbox, first)
        assert (sandbox.pool, sandbox.spec.labels, sandbox.ttl.seconds) == (None, {"team": "a"}, 600)
        assert sandbox.ends_at > datetime.now(UTC) + timedelta(seconds=500), "its time begins with the hand-over"
        await ready(place, template, 2)
        assert len(place.node.did(Verb.SANDBOX_PROVISION)) == started + 1
        assert first not in (await place.get(Pool, template)).members
        own = await place.do("sandbox.create", {"template": "base", "memory_mb": 64, "wait_s": 10})
        assert not own["handed_over"], "it wants something of its own"
        assert await place.do("sandbox.exec", {"sandbox_id": first, "cmd": ["true"]})

    at(test)


def test_many_at_once_each_get_their_own_and_the_same_command_the_same(at) -> None:
    async def test(place) -> None:
        template = await pooled(place, 4)
        waiting = set((await place.get(Pool, template)).waiting)
        asked = [place.do("sandbox.create", {"template": "base", "wait_s": 10}, command_id=f"c{n % 6}") for n in range(12)]
        given = [answer["sandbox_id"] for answer in await asyncio.gather(*asked)]
        await ready(place, template, 4)
        assert given[:6] == given[6:], "sent twice, done once"
        assert len(set(given)) == 6
        assert waiting <= set(given)
        place.plane._receipts._known.clear()
        body = {"template": "base", "wait_s": 10}
        assert (await ask(place.plane, "sandbox.create", body, "c0"))["sandbox_id"] == given[0]
        direct = (await place.plane.control.store.load(Pool, "default", template)).commands
        assert {f"c{n}" for n in range(6)} <= set(direct), "handed over or not, the pool's own history has them"
        lives = [s for s in place.plane.control.fleet.sandboxes if s not in (await place.get(Pool, template)).members]
        assert sorted(lives) == sorted(set(given)), "and nobody has one that he does not know of"

    at(test)


def test_crashes_make_it_wait_longer_and_a_steady_member_makes_them_forgotten(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.refuse = lambda order: Failure(code="driver.no-command", message="no") if order.verb == Verb.SANDBOX_PROVISION else None
        await place.do("pool.set", {"template": template, "desired": 2})

        async def backed_off(crashes: int) -> bool:
            pool = await place.get(Pool, template)
            return pool.crashes == crashes and not pool.members

        await eventually(lambda: backed_off(1))
        tried = len(place.node.did(Verb.SANDBOX_PROVISION))
        key = ("pool", "default", template)
        await place.plane.processes.pump(key)
        assert len((await place.get(Pool, template)).members) == 0, "not before it has cooled off"
        later(place, 11)
        await place.plane.processes.pump(key)
        await eventually(lambda: backed_off(2))
        assert len(place.node.did(Verb.SANDBOX_PROVISION)) > tried
        place.node.refuse = lambda _: None
        later(place, 60)
        await place.plane.processes.pump(key)
        await ready(place, template, 2)
        later(place, 200)
        await place.plane.processes.pump(key)
        assert (await place.get(Pool, template)).crashes == 0

    at(test)


def test_what_nobody_uses_is_stopped_the_oldest_first_and_a_pool_that_is_deleted_leaves_nothing(at) -> None:
    async def test(place) -> None:
        template = await pooled(place, 2, idle_s=600)
        members = (await place.get(Pool, template)).waiting
        assert (await refusal(place.do("template.delete", {"template": template}))).code == "template.in-use"
        later(place, 700)
        await place.plane.processes.pump(("pool", "default", template))

        async def dead(name: str) -> bool:
            return (await place.get(Sandbox, name)).state is SandboxState.DEAD

        for name in members:
            await eventually(lambda name=name: dead(name))
            assert (await place.get(Sandbox, name)).reason == "scaled_down"
        await ready(place, template, 0)
        assert (await place.get(Pool, template)).settings.desired == 0
        await place.do("pool.set", {"template": template, "desired": 1, "wait_s": 10})
        gone = await place.do("pool.delete", {"template": template, "wait_s": 10})
        assert (gone["state"], gone["current"]) == ("GONE", 0)
        cold = await place.do("sandbox.create", {"template": template, "wait_s": 10})
        assert not cold["handed_over"]
        assert (await refusal(place.do("pool.set", {"template": template, "desired": 9, "maximum": 3}))).code == "command.invalid"
        await place.do("pool.set", {"template": template, "desired": 1, "maximum": 3})
        assert (await refusal(place.do("pool.set", {"template": template, "desired": 9}))).code == "pool.above-maximum"

    at(test)


def test_a_pool_without_room_fills_up_when_there_is_some(at) -> None:
    async def test(place) -> None:
        template = await place.template(memory_mb=400)
        await place.node.hello(memory_mb=1000)
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].capacity.memory_mb == 1000)
        told = await place.do("pool.set", {"template": template, "desired": 3, "wait_s": 0.5})
        assert (told["settled"], told["ready"]) == (False, 2)
        await place.do("node.configure", {"node_id": "node-1", "memory_ratio": 2})
        await place.plane.control.fleet.reached(await place.plane.control.store.position())
        await place.plane.processes.pump(("pool", "default", template))
        await ready(place, template, 3)
        assert (await place.get(Pool, template)).state is PoolState.ACTIVE

    at(test)
