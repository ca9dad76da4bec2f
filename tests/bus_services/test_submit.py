"""Submitted commands: carried out although nobody waits, once, with an outcome to be looked up."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from bus.dead import DeadLetters
from bus.endpoints import Reply, Request
from bus.reader import Work
from bus.requests import call, store
from bus.submit import SubmitWorker, submit
from domain.kernel.errors import Refused

QUICK = Work(tries=3, pauses=(0.01,), grace=0.2)


class Handler:
    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.faults: list[Exception] = []

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.faults:
            raise self.faults.pop(0)
        return Reply({"body": orjson.loads(request.body)}, id="x", seq=9)


def working(nc, handler) -> SubmitWorker:
    return SubmitWorker(nc, handler, commands=["lamp.light"], work=QUICK)


async def outcome(nc, command_id: str) -> dict[str, Any]:
    """Waits for it, as a submitter would: by a consumer on its subject."""
    subscription = await nc.jetstream().subscribe(f"strand.v1.outcome.p.{command_id}", ordered_consumer=True)
    return orjson.loads((await subscription.next_msg(timeout=10)).data)


def test_a_submitted_command_is_carried_out_and_its_outcome_kept(connecting, run, eventually) -> None:
    async def main() -> None:
        handler = Handler()
        async with connecting(streams=True) as nc:
            command_id, _ = await submit(nc, "p", "lamp.light", {"a": 1})
            assert (await submit(nc, "p", "lamp.light", {"a": 1}, command_id))[1].duplicate
            async with working(nc, handler):
                assert await outcome(nc, command_id) == {
                    "ok": True,
                    "command_id": command_id,
                    "id": "x",
                    "seq": 9,
                    "result": {"body": {"a": 1}},
                }
            (asked,) = handler.asked
            assert (asked.project, asked.name, asked.command_id, asked.explicit) == ("p", "lamp.light", command_id, True)

            async def taken() -> bool:  # the server handles an ack in its own time
                return (await call(nc, "STREAM.INFO.SUBMIT"))["state"]["messages"] == 0

            await eventually(taken)

    run(main())


def test_a_message_without_a_command_id_has_a_lasting_one(connecting, run, eventually) -> None:
    async def main() -> None:
        first = Handler()
        first.faults = [Refused("bus.unavailable", "", retryable=True)]
        async with connecting(streams=True) as nc:
            await store(nc, "strand.v1.submit.p.lamp.light", b"{}")
            await store(nc, "strand.v1.submit.p.lamp.light", b"{}", msg_id="mine")
            async with working(nc, first):
                await eventually(lambda: len(first.asked) == 3)
            ids = {request.command_id for request in first.asked}
            assert len(ids) == 2
            assert "mine" in ids

    run(main())


@pytest.mark.parametrize(
    ("faults", "code", "asked"),
    [
        ([Refused("lamp.broken", "no")], "lamp.broken", 1),
        ([Refused("lamp.hot", "", retryable=True)] * 9, "lamp.hot", 3),
        ([RuntimeError("secret-42")] * 9, "internal", 3),
        ([RuntimeError("secret-42")], None, 2),
    ],
)
def test_failures_are_retried_if_that_can_help_and_end_as_an_outcome(connecting, run, faults, code, asked) -> None:
    async def main() -> None:
        handler = Handler()
        handler.faults = list(faults)
        async with connecting(streams=True) as nc, working(nc, handler):
            command_id, _ = await submit(nc, "p", "lamp.light", {})
            said = await outcome(nc, command_id)
            assert said.get("error", {}).get("code") == code
            assert len(handler.asked) == asked
            assert "secret-42" not in str(said)

    run(main())


def test_an_unknown_command_is_answered_and_nonsense_ends_in_dead(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc, working(nc, Handler()):
            await store(nc, "strand.v1.submit.NOT-A-PROJECT.lamp.light", b"{}")
            command_id, _ = await submit(nc, "p", "lamp.lit", {})
            error = (await outcome(nc, command_id))["error"]
            assert (error["code"], error["details"]) == ("command.unknown", {"nearest": ["lamp.light"]})

            async def dead() -> bool:
                return [letter.body for letter in await DeadLetters(nc).list()] == [b"{}"]

            await eventually(dead)

    run(main())


def test_submitted_commands_survive_a_killed_server_and_a_killed_worker(connecting, server, run, eventually) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def dies(_: Request) -> Reply:
            begun.set()
            await asyncio.Event().wait()
            return Reply({})

        async with connecting(streams=True) as nc:
            command_id, _ = await submit(nc, "p", "lamp.light", {"a": 1})
            async with connecting() as killed:
                worker = SubmitWorker(killed, dies, commands=["lamp.light"], work=QUICK)
                await worker.start()
                await begun.wait()
                await killed.close()
                await worker.close()
            server.kill()
            await asyncio.to_thread(server.start)
            async with working(nc, Handler()):
                assert (await outcome(nc, command_id))["ok"] is True

    run(main())
