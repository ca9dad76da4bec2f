"""The same command id: one effect, one answer; with another body: a mismatch. And what a crash between the steps leaves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest
from support.waiting import eventually

from bus.endpoints import Reply, Request
from bus.receipts import Receipts
from domain.kernel.errors import Refused
from domain.nodes.orders import Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.plane import ControlPlane


def test_a_repeated_command_id_gives_the_same_answer_and_acts_once(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        answers = [await place.caller.command("default", "sandbox.create", {"template": template}, command_id="once") for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        await eventually(lambda: len(place.node.did(Verb.SANDBOX_PROVISION)) == 1)

    at(test)


def test_concurrent_duplicates_have_one_effect(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        asked = [place.caller.command("default", "sandbox.create", {"template": template}, command_id="same") for _ in range(20)]
        assert len({answer["id"] for answer in await asyncio.gather(*asked)}) == 1
        assert len(await place.plane.control.store.read("default", "sandbox", (await asked_id(place, "same")))) >= 1
        assert len(place.plane.control.fleet.sandboxes) == 1

    async def asked_id(place, command_id: str) -> str:
        return (await place.plane._receipts.get("default", command_id)).reply["id"]

    at(test)


def test_an_id_that_the_client_made_up_is_a_repetition_too_and_leaves_no_receipt(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        subject, body = "strand.v1.cmd.default.sandbox.create", orjson.dumps({"template": template})
        answers = [(await place.nc.request(subject, body, headers={"Strand-Call-Id": "made-up"}, timeout=10)).data for _ in range(2)]
        assert answers[0] == answers[1]
        await eventually(lambda: len(place.plane.control.fleet.sandboxes) == 1)
        other = orjson.dumps({"template": template, "cpu": 2})
        mismatch = await place.nc.request(subject, other, headers={"Strand-Call-Id": "made-up"}, timeout=10)
        assert orjson.loads(mismatch.data)["error"]["code"] == "command.mismatch"
        place.plane._receipts._known.clear()  # as another control plane has it
        again = await place.nc.request(subject, body, headers={"Strand-Call-Id": "made-up"}, timeout=10)
        assert orjson.loads(again.data)["id"] == orjson.loads(answers[0])["id"]
        assert await Receipts(place.nc).get("default", "made-up") is None

    at(test)


def test_the_same_id_with_another_body_is_a_mismatch(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        await place.caller.command("default", "sandbox.create", {"template": template}, command_id="mine")
        for name, body in (("sandbox.create", {"template": template, "cpu": 2}), ("template.delete", {"template": template})):
            with pytest.raises(Refused) as refused:
                await place.caller.command("default", name, body, command_id="mine")
            assert refused.value.code == "command.mismatch"

    at(test)


def test_the_answer_outlives_the_receipt_and_the_control_plane(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        first = await place.caller.command("default", "sandbox.create", {"template": template}, command_id="kept")
        await place.nc.jetstream().purge_stream("RECEIPTS")
        await place.plane.close()
        place.plane = await ControlPlane.open(place.nc)
        await place.plane.start()
        again = await place.caller.command("default", "sandbox.create", {"template": template}, command_id="kept")
        assert again["id"] == first["id"]
        assert len(place.plane.control.fleet.sandboxes) == 1
        with pytest.raises(Refused, match="another"):
            await place.caller.command("default", "sandbox.create", {"template": template, "cpu": 3}, command_id="kept")

    at(test)


def test_exec_is_not_run_again_for_a_repeated_id(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        body = {"sandbox_id": sandbox, "cmd": ["date"]}
        first = await place.caller.command("default", "sandbox.exec", body, command_id="e1")
        await place.nc.jetstream().purge_stream("RECEIPTS")
        await place.plane._receipts.flush()
        place.plane._receipts._known.clear()
        again = await place.caller.command("default", "sandbox.exec", body, command_id="e1")
        assert (first["result"]["exit_code"], again["result"]["exit_code"]) == (0, 0)
        assert len(place.node.did(Verb.SANDBOX_EXEC)) == 1
        events = [e["type"] for c in await place.plane.control.store.read("default", "sandbox", sandbox) for e in c.events]
        assert events.count("sandbox.executed") == 1
        assert (await place.get(Sandbox, sandbox)).state.value == "RUNNING"

    at(test)


@asynccontextmanager
async def another_plane(place):
    """A second control plane beside the first."""
    plane = await ControlPlane.open(place.nc, name="other")
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()


async def ask(plane, name: str, body: dict, command_id: str) -> Reply | Refused:
    """What one particular control plane says to a command under an id that its caller chose."""
    try:
        return await plane._dispatcher.handle(Request("default", name, orjson.dumps(body), command_id, explicit=True))
    except Refused as refused:
        return refused


def test_concurrent_duplicates_at_two_control_planes_have_one_effect_and_one_answer(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        async with another_plane(place) as other:
            planes = (place.plane, other) * 5
            told = await asyncio.gather(*[ask(plane, "sandbox.create", {"template": template}, "same") for plane in planes])
            assert told.count(told[0]) == 10, told
            await eventually(lambda: len(place.plane.control.fleet.sandboxes) == 1)
            running = await place.sandbox(template)
            ran = await asyncio.gather(*[ask(plane, "sandbox.exec", {"sandbox_id": running, "cmd": ["date"]}, "run") for plane in planes])
            assert ran.count(ran[0]) == 10, ran
            assert len(place.node.did(Verb.SANDBOX_EXEC)) == 1

    at(test)


def test_one_id_with_two_bodies_at_two_control_planes_has_one_effect_and_one_mismatch(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        sandboxes = await asyncio.gather(*(place.sandbox(template) for _ in range(8)))
        async with another_plane(place) as other:
            for number, pair in enumerate(zip(sandboxes[::2], sandboxes[1::2], strict=True)):
                asked = zip((place.plane, other), pair, strict=True)
                told = await asyncio.gather(*[ask(p, "sandbox.delete", {"sandbox_id": s}, f"one-{number}") for p, s in asked])
                assert [t.code for t in told if isinstance(t, Refused)] == ["command.mismatch"]
                states = [(await place.get(Sandbox, s)).state for s in pair]
                assert states.count(SandboxState.RUNNING) == 1, states

    at(test)


def test_an_id_stays_with_its_body_when_the_control_plane_dies_before_it_has_answered(at, monkeypatch) -> None:
    async def test(place) -> None:
        template = await place.template()
        first, second = await place.sandbox(template), await place.sandbox(template)

        async def dies(*_: object) -> None:
            raise asyncio.CancelledError

        async with another_plane(place) as other:
            monkeypatch.setattr(place.plane._receipts, "settle", dies)
            with pytest.raises(asyncio.CancelledError):
                await ask(place.plane, "sandbox.delete", {"sandbox_id": first}, "cut-off")
            assert (await ask(other, "sandbox.delete", {"sandbox_id": second}, "cut-off")).code == "command.mismatch"
            assert (await ask(other, "sandbox.delete", {"sandbox_id": first}, "cut-off")).id == first
            assert (await place.get(Sandbox, second)).state is SandboxState.RUNNING

    at(test)


def test_a_late_repetition_of_exec_gets_the_output_from_the_bus_and_not_from_the_node(at) -> None:
    async def test(place) -> None:
        body = {"sandbox_id": await place.sandbox(await place.template()), "cmd": ["date"]}
        first = await ask(place.plane, "sandbox.exec", body, "late")
        asked = len(place.node.orders)
        place.node.hold = lambda order: True
        async with another_plane(place) as other:
            again = await ask(other, "sandbox.exec", body, "late")
        assert (first.result["stdout"], again) == ("aGk=", first)
        assert len(place.node.orders) == asked

    at(test)
