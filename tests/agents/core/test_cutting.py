"""What a cancelled job has on a node is cut off, wherever it is, and nothing of it is left (``order-cancel``)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.building import building, leaves_nothing
from support.waiting import eventually

from domain.nodes.orders import Order, Report, ReportKind, Verb

TEMPLATE = "tpl-" + "3" * 24
ARTIFACT = "rfs-" + "7" * 24
BUILD = {"artifact_id": ARTIFACT, "image": "oci:/nowhere", "digest": "sha256:" + "1" * 64, "disk_mb": 64}


def hangs(begun: asyncio.Event, left: list[str] | None = None):
    """Something that never ends by itself."""

    async def never(*_: Any, **__: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            if left is not None:
                left.append("cleaned up")

    return never


async def cancelled(rig, *orders: Order) -> list[Report]:
    """Cancel the process of these orders: how each of them ended."""
    about = {"process": orders[0].process, "process_id": orders[0].process_id}
    done = await rig.tell(Verb.ORDER_CANCEL, about, key="cancel")
    assert done.kind is ReportKind.DONE, done
    return [rig.ends_of(order)[-1] for order in orders]


def test_a_build_that_is_cancelled_stops_and_so_does_what_waits_behind_it(rig, run) -> None:
    async def scenario() -> None:
        async with rig.life():
            building(rig, {})
            begun, left = asyncio.Event(), []
            rig.node.images.build = hangs(begun, left)
            orders = [rig.order(Verb.ARTIFACT_BUILD, BUILD) for _ in range(2)]
            assert orders[0].key == orders[1].key
            sent = [asyncio.create_task(rig.send(order)) for order in orders]
            await eventually(begun.is_set)
            ends = await cancelled(rig, *orders)
            assert [(end.kind, end.error.code) for end in ends] == [(ReportKind.FAILED, "order.cancelled")] * 2
            assert left == ["cleaned up"], "the second was never begun"
            await asyncio.gather(*sent)
            assert rig.node.cache.artifacts() == set()

    run(scenario())


def test_a_fetch_that_is_cancelled_stops_and_the_next_one_succeeds(rig, run) -> None:
    async def scenario() -> None:
        async with rig.life():
            body = {"template_id": TEMPLATE, "artifact": rig.artifact.model_dump()}
            begun, real = asyncio.Event(), rig.node.cache._fetch
            rig.node.cache._fetch = hangs(begun)
            order = rig.order(Verb.REPLICA_DISTRIBUTE, body)
            sent = asyncio.create_task(rig.send(order))
            await eventually(begun.is_set)
            (end,) = await cancelled(rig, order)
            assert end.error.code == "order.cancelled"
            await sent
            rig.node.cache._fetch = real
            assert (await rig.tell(Verb.REPLICA_DISTRIBUTE, body)).kind is ReportKind.DONE, "what comes later is none of its business"

    run(scenario())


def test_a_boot_that_is_cancelled_is_undone(rig, run, monkeypatch) -> None:
    async def scenario() -> None:
        async with rig.life():
            begun = asyncio.Event()
            monkeypatch.setattr(rig.node.drivers.pick("sim"), "start", hangs(begun))
            recipe = {"cmd": ["sleep", "10"]}
            order = rig.order(Verb.REPLICA_PREPARE, {"template_id": TEMPLATE, "artifact": rig.artifact.model_dump(), "recipe": recipe})
            sent = asyncio.create_task(rig.send(order))
            await eventually(begun.is_set)
            (end,) = await cancelled(rig, order)
            assert end.error.code == "order.cancelled"
            await sent
            assert await rig.left() == {}
            assert rig.node.memory.replicas == {}

    run(scenario())


def test_a_commit_that_is_cancelled_leaves_nothing_and_the_sandbox_goes_on(rig, run) -> None:
    async def scenario() -> None:
        async with rig.life():
            building(rig, {})
            begun = asyncio.Event()
            rig.node.images.pack = hangs(begun)
            sandbox = await rig.up()
            order = rig.order(Verb.SANDBOX_COMMIT, {"sandbox_id": sandbox, "disk_mb": 64})
            sent = asyncio.create_task(rig.send(order))
            await eventually(begun.is_set)
            (end,) = await cancelled(rig, order)
            assert end.error.code == "order.cancelled"
            await sent
            await leaves_nothing(rig)
            assert (await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["true"]})).body["exit_code"] == 0

    run(scenario())


@pytest.mark.parametrize("attempt", [1, 2])
def test_only_attempts_up_to_the_cancelled_one_are_cut_off(rig, run, attempt: int) -> None:
    async def scenario() -> None:
        async with rig.life():
            building(rig, {})
            begun = asyncio.Event()
            rig.node.images.build = hangs(begun)
            order = rig.order(Verb.ARTIFACT_BUILD, BUILD).model_copy(update={"attempt": 2})
            sent = asyncio.create_task(rig.send(order))
            await eventually(begun.is_set)
            await rig.tell(Verb.ORDER_CANCEL, {"process": order.process, "process_id": order.process_id, "attempt": attempt}, key="cancel")
            assert bool(rig.ends_of(order)) == (attempt == 2)
            sent.cancel()

    run(scenario())
