"""Whatever is created from a template or snapshot while that is deleted: either the delete is refused, or nothing lives on what is gone.

The second control plane of these tests can be made blind: it reads the log no further until it may see again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.planes import ask
from support.waiting import eventually

from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import Template, TemplateState
from handlers.plane import ControlPlane


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch):
    """Another control plane beside the one of ``place``, and the event that lets it see what is new in the log."""
    real = ControlPlane._fold
    held: dict[ControlPlane, asyncio.Event] = {}

    async def fold(self, commits) -> None:
        if self in held:
            await held[self].wait()
        await real(self, commits)

    monkeypatch.setattr(ControlPlane, "_fold", fold)

    @asynccontextmanager
    async def open_second(place) -> AsyncIterator[tuple[ControlPlane, asyncio.Event]]:
        plane = await ControlPlane.open(place.nc, name="second")
        sees = held[plane] = asyncio.Event()
        sees.set()
        await plane.start()
        try:
            yield plane, sees
        finally:
            sees.set()
            await plane.close()

    return open_second


async def is_dead(place, sandbox: str) -> bool:
    return (await place.get(Sandbox, sandbox)).state is SandboxState.DEAD


async def is_judged(place, template: str, deleting: asyncio.Task[object]) -> bool:
    return deleting.done() or bool((await place.get(Template, template)).refused_deletes)


def test_a_delete_sees_a_sandbox_that_another_control_plane_has_just_created(at, second) -> None:
    async def test(place) -> None:
        template = await place.template(alias="demo")
        async with second(place) as (other, sees):
            await other.control.fleet.reached(place.plane.control.fleet.seq)
            sees.clear()
            sandbox = (await ask(place.plane, "sandbox.create", {"template": template, "wait_s": 10}))["sandbox_id"]
            deleting = asyncio.create_task(ask(other, "template.delete", {"template": "demo"}, "the-delete"))
            await eventually(lambda: is_judged(place, template, deleting))
            sees.set()
            with pytest.raises(Refused) as refused:
                await deleting
            assert (refused.value.code, refused.value.details) == ("template.in-use", {"sandboxes": [sandbox]})
            with pytest.raises(Refused) as repeated:
                await ask(place.plane, "template.delete", {"template": "demo"}, "the-delete")
            assert repeated.value.as_dict() == refused.value.as_dict()
            found = await place.get(Template, template)
            assert (found.state, found.pending_deletes) == (TemplateState.READY, {})
            assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING
            await ask(place.plane, "sandbox.create", {"template": template, "wait_s": 10})

    at(test)


def test_a_sandbox_of_a_template_that_is_gone_by_now_does_not_live(at, second) -> None:
    async def test(place) -> None:
        template, of_the_same_artifact = await place.template(), await place.template(memory_mb=64)
        async with second(place) as (other, sees):
            await other.control.fleet.reached(place.plane.control.fleet.seq)
            await ask(other, "sandbox.create", {"template": of_the_same_artifact, "wait_s": 10})
            await other.control.get(Template, "default", template)
            sees.clear()
            await ask(place.plane, "template.delete", {"template": template, "wait_s": 10})
            told = asyncio.create_task(ask(other, "sandbox.create", {"template": template, "wait_s": 10}))
            untold = (await ask(other, "sandbox.create", {"template": template}))["sandbox_id"]
            await eventually(lambda: is_dead(place, untold))
            assert (await place.get(Sandbox, untold)).reason == "template_deleted"
            sees.set()
            with pytest.raises(Refused) as refused:
                await told
            assert (refused.value.code, refused.value.details["cause"]) == ("sandbox.startup-failed", "template.deleted")
            await eventually(lambda: is_dead(place, refused.value.details["sandbox_id"]))
            assert place.plane.control.fleet.users_of(template) == []

    at(test)


def test_a_delete_whose_control_plane_dies_before_it_judges_is_judged_by_another_one(at, second, monkeypatch) -> None:
    async def test(place) -> None:
        used, unused = await place.template(), await place.template(memory_mb=64)
        async with second(place) as (other, sees):
            await other.control.fleet.reached(place.plane.control.fleet.seq)
            sees.clear()
            sandbox = (await ask(place.plane, "sandbox.create", {"template": used, "wait_s": 10}))["sandbox_id"]
            begun = [asyncio.create_task(ask(other, "template.delete", {"template": t})) for t in (used, unused)]
            await eventually(lambda: bool(place.plane.control.fleet.fences.get(unused)))
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

            async def judged() -> bool:
                kept, gone = await place.get(Template, used), await place.get(Template, unused)
                return bool(kept.refused_deletes) and gone.state is TemplateState.DELETED

            await eventually(judged)
            assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING

    at(test)


def test_creates_and_deletes_at_once_on_two_control_planes_agree(at, second) -> None:
    async def test(place) -> None:
        async with second(place) as (other, _):
            for n in range(8):
                template = await place.template(memory_mb=100 + n)
                first, then = (place.plane, other) if n % 2 else (other, place.plane)
                wait = 10 if n % 4 < 2 else 0
                made, deleted = await asyncio.gather(
                    ask(first, "sandbox.create", {"template": template, "wait_s": wait}),
                    ask(then, "template.delete", {"template": template}),
                    return_exceptions=True,
                )
                await agreed(place, template, made, deleted)

    async def agreed(place, template: str, made, deleted) -> None:
        if isinstance(deleted, Refused):
            assert deleted.code == "template.in-use"
            assert (await place.get(Template, template)).state is TemplateState.READY
            assert (await place.get(Sandbox, made["sandbox_id"])).state is not SandboxState.DEAD
            return
        if isinstance(made, Refused):
            assert made.code in {"template.not-found", "template.deleting", "sandbox.startup-failed", "template.no-ready-replica"}
        else:
            await eventually(lambda: is_dead(place, made["sandbox_id"]))

    at(test)


def test_a_rollback_and_a_delete_of_its_snapshot_come_one_after_the_other(at, second) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = (await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10}))["snapshot_id"]
        async with second(place) as (other, sees):
            await other.control.fleet.reached(place.plane.control.fleet.seq)
            await other.control.get(Snapshot, "default", snapshot)
            sees.clear()
            await ask(place.plane, "snapshot.delete", {"snapshot_id": snapshot, "wait_s": 10})
            with pytest.raises(Refused) as refused:
                await ask(other, "sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot})
            assert refused.value.code == "snapshot.not-found"

    at(test)


def test_a_snapshot_that_is_deleted_while_its_sandbox_goes_back_to_it_keeps_its_bytes(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = (await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10}))["snapshot_id"]
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_ROLLBACK
        await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot})
        await place.do("snapshot.delete", {"snapshot_id": snapshot})
        (order,) = await eventually(lambda: place.node.did(Verb.SANDBOX_ROLLBACK))
        await place.node.answer(order)
        await eventually(lambda: is_on(place, snapshot, sandbox))
        assert place.node.did(Verb.SNAPSHOT_REMOVE) == []
        await place.do("sandbox.delete", {"sandbox_id": sandbox, "wait_s": 10})

        async def gone() -> bool:
            return (await place.get(Snapshot, snapshot)).state is SnapshotState.GONE

        await eventually(gone)

    async def is_on(place, snapshot: str, sandbox: str) -> bool:
        found = await place.get(Snapshot, snapshot)
        return (found.state, set(found.refs), found.rollback) == (SnapshotState.DELETED, {sandbox}, None)

    at(test)


def test_a_sandbox_that_went_back_to_another_snapshot_holds_only_that_one(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        one, two = [(await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10}))["snapshot_id"] for _ in range(2)]
        for snapshot in (one, two):
            await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot, "wait_s": 10})
        assert [set((await place.get(Snapshot, s)).refs) for s in (one, two)] == [set(), {sandbox}]

    at(test)
