"""Commands and queries over request/reply: what callers get back, whatever they send and whatever happens to the handler."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, ClassVar

import orjson
import pytest
import uvloop
from pydantic import Field

from bus.answers import is_inbox
from bus.client import Caller
from bus.endpoints import Reply, Request, serve_commands, serve_queries
from domain.kernel.aggregate import Record
from domain.kernel.command import MAX_BODY, Command
from domain.kernel.errors import Refused, not_found
from domain.kernel.registry import COMMANDS

pytestmark = pytest.mark.quick


class Lit(Record):
    lamp: str


class LampLight(Command):
    """Light a lamp."""

    NOUN = "lamp"
    VERB = "light"
    EXAMPLE: ClassVar[dict[str, Any]] = {"lamp": "one"}
    RESULT = Lit

    lamp: str = Field(max_length=10)


del COMMANDS["lamp.light"]  # the registry is the product's; this command is the test's
LAMPS = {"lamp.light": LampLight}


async def light(request: Request) -> Reply:
    lamp = LampLight.parse(request.body).lamp
    match lamp:
        case "broken":
            raise RuntimeError("the filament, secret-42")
        case "missing":
            raise not_found("lamp", lamp)
        case "later":
            raise Refused("lamp.hot", "too hot", retryable=True, details={"wait": 1.5})
        case "huge":
            return Reply({"lamp": "x" * 9_000_000})
    return Reply({"lamp": lamp, "project": request.project, "actor": request.actor, "explicit": request.explicit}, id=lamp, seq=7)


def test_a_command_is_answered_with_its_result_id_and_position(connecting) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            reply = await Caller(nc, actor="ann").command("default", "lamp.light", {"lamp": "one"}, command_id="c-1")
            assert reply == {
                "ok": True,
                "command_id": "c-1",
                "id": "one",
                "seq": 7,
                "result": {"lamp": "one", "project": "default", "actor": "ann", "explicit": True},
            }

    uvloop.run(main())


def test_a_bare_request_is_enough_and_gets_a_command_id(connecting) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            reply = orjson.loads((await nc.request("strand.v1.cmd.default.lamp.light", b'{"lamp":"one"}', timeout=5)).data)
            assert reply["ok"] is True
            assert len(reply["command_id"]) == 32
            assert reply["result"]["explicit"] is False
            assert reply["result"]["actor"] == "local"

    uvloop.run(main())


@pytest.mark.parametrize(
    ("body", "code", "status", "retryable"),
    [
        (b'{"lamp":"missing"}', "lamp.not-found", "404", False),
        (b'{"lamp":"later"}', "lamp.hot", "503", True),
        (b'{"lamp":"one","colour":1}', "command.invalid", "400", False),
        (b"not json", "command.invalid", "400", False),
        (b"[" * 200, "command.invalid", "400", False),
        (b" " * (MAX_BODY + 1), "command.too-large", "413", False),
        (b'{"lamp":"huge"}', "reply.too-large", "413", False),
        (b'{"lamp":"broken"}', "internal", "500", False),
    ],
)
def test_a_refusal_says_why_in_the_body_and_in_the_headers(connecting, body, code, status, retryable) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            message = await nc.request("strand.v1.cmd.default.lamp.light", body, timeout=5)
            reply = orjson.loads(message.data)
            assert (reply["ok"], reply["error"]["code"], reply["error"]["retryable"]) == (False, code, retryable)
            assert message.headers["Nats-Service-Error-Code"] == status
            assert message.headers["Nats-Service-Error"].startswith(code)
            assert b"secret-42" not in message.data
            assert "secret-42" not in message.headers["Nats-Service-Error"]

    uvloop.run(main())


@pytest.mark.parametrize("given", ["no spaces", "x" * 65, "", "ümlaut", "a.b"])
def test_an_unusable_command_id_is_refused(connecting, given) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            message = await nc.request(
                "strand.v1.cmd.default.lamp.light", b'{"lamp":"one"}', headers={"Strand-Command-Id": given}, timeout=5
            )
            error = orjson.loads(message.data)["error"]
            assert error["code"] == "command.invalid"
            assert list(error["details"]) == ["Strand-Command-Id"]

    uvloop.run(main())


@pytest.mark.parametrize("subject", ["strand.v1.cmd.default.lamp.lihgt", "strand.v1.cmd.default", "strand.v1.cmd.default.lamp.light.now"])
def test_an_unknown_command_is_told_the_nearest_names(connecting, subject) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            error = orjson.loads((await nc.request(subject, b"{}", timeout=5)).data)["error"]
            assert error["code"] == "command.unknown"
            if subject.endswith("lihgt"):
                assert error["details"] == {"nearest": ["lamp.light"]}

    uvloop.run(main())


def test_an_answer_never_goes_to_a_subject_that_is_no_inbox(connecting) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            forged = await nc.subscribe("strand.evt.>")
            await nc.publish("strand.v1.cmd.default.lamp.light", b'{"lamp":"one"}', reply="strand.evt.default.sandbox.sb-1")
            await nc.publish("$SRV.PING", b"", reply="strand.evt.default.sandbox.sb-1")
            await nc.request("strand.v1.cmd.default.lamp.light", b'{"lamp":"two"}', timeout=5)
            await nc.request("$SRV.PING", b"", timeout=5)
            await nc.flush()
            assert forged.pending_msgs == 0

    uvloop.run(main())


def test_what_is_an_inbox() -> None:
    assert is_inbox("_INBOX.abc.def")
    assert is_inbox("_INBOX_n1.abc")
    assert is_inbox("_R_.XyZ.abc")
    for subject in ("", "_INBOX", "_INBOXevil strand.evt.a", "strand.evt.default.a.b", "x._INBOX.a", "$JS.API.STREAM.DELETE.EVENTS"):
        assert not is_inbox(subject), subject


def test_requests_run_side_by_side_up_to_the_limit_and_the_rest_is_told_to_come_back(connecting) -> None:
    async def main() -> None:
        gate, running, most = asyncio.Event(), 0, 0

        async def slow(request: Request) -> Reply:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1
            return Reply({})

        async with connecting() as nc, await serve_commands(nc, LAMPS, slow, limit=2, queue=3) as endpoints:
            asked = [asyncio.create_task(nc.request("strand.v1.cmd.default.lamp.light", b"", timeout=20)) for _ in range(8)]
            done: set[asyncio.Task[Any]] = set()
            while len(done) < 3:
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert {orjson.loads(task.result().data)["error"]["code"] for task in done} == {"bus.overloaded"}
            assert endpoints.busy == 5
            gate.set()
            codes = [orjson.loads((await task).data)["ok"] for task in asked]
            assert sorted(codes) == [False] * 3 + [True] * 5
            assert most == 2

    uvloop.run(main())


def test_a_waiting_request_lends_its_place(connecting) -> None:
    async def main() -> None:
        settled = asyncio.Event()

        async def handle(request: Request) -> Reply:
            if request.body == b"wait":
                async with request.waiting():
                    await settled.wait()
            else:
                settled.set()
            return Reply({})

        async with connecting() as nc, await serve_commands(nc, LAMPS, handle, limit=1):
            asked = [nc.request("strand.v1.cmd.default.lamp.light", body, timeout=10) for body in (b"wait", b"wait", b"go")]
            assert all(orjson.loads(m.data)["ok"] for m in await asyncio.gather(*asked))

    uvloop.run(main())


def test_a_command_repeated_while_it_runs_is_not_run_twice_and_answered_twice(connecting) -> None:
    async def main() -> None:
        begun, finish, runs = asyncio.Event(), asyncio.Event(), 0

        async def handle(request: Request) -> Reply:
            nonlocal runs
            runs += 1
            begun.set()
            await finish.wait()
            return Reply({"run": runs})

        async with connecting() as nc, await serve_commands(nc, LAMPS, handle):

            def ask(body: bytes) -> asyncio.Task[Any]:
                headers = {"Strand-Command-Id": "c-1"}
                return asyncio.create_task(nc.request("strand.v1.cmd.default.lamp.light", body, headers=headers, timeout=9))

            asked = [ask(b"a")]
            await begun.wait()
            begun.clear()
            asked += [ask(b"a"), ask(b"b")]
            await begun.wait()  # the other body: another command, which is the handler's to refuse
            await nc.flush()
            finish.set()
            assert [orjson.loads((await task).data)["result"]["run"] for task in asked] == [2, 2, 2]
            assert runs == 2

    uvloop.run(main())


def test_closing_finishes_what_was_begun_and_turns_the_rest_away(connecting) -> None:
    async def main() -> None:
        begun, finish = asyncio.Semaphore(0), asyncio.Event()

        async def handle(request: Request) -> Reply:
            begun.release()
            await (finish.wait() if request.body == b"soon" else asyncio.Event().wait())
            return Reply({})

        async with connecting() as nc:
            endpoints = await serve_commands(nc, LAMPS, handle)
            soon, never = [asyncio.create_task(nc.request("strand.v1.cmd.default.lamp.light", b, timeout=9)) for b in (b"soon", b"never")]
            await begun.acquire()
            await begun.acquire()
            finish.set()
            await endpoints.close(grace=0.2)
            assert orjson.loads((await soon).data)["ok"] is True
            error = orjson.loads((await never).data)["error"]
            assert (error["code"], error["retryable"]) == ("bus.unavailable", True)
            assert endpoints.busy == 0

    uvloop.run(main())


def test_the_service_can_be_discovered_with_schema_example_and_true_figures(connecting) -> None:
    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            caller = Caller(nc)
            await caller.command("default", "lamp.light", {"lamp": "one"})
            with pytest.raises(Refused):
                await caller.command("default", "lamp.light", {"lamp": "missing"})
            ping = orjson.loads((await nc.request("$SRV.PING.strandline", b"", timeout=5)).data)
            info = orjson.loads((await nc.request(f"$SRV.INFO.strandline.{ping['id']}", b"", timeout=5)).data)
            (endpoint,) = info["endpoints"]
            assert (endpoint["name"], endpoint["subject"]) == ("lamp-light", "strand.v1.cmd.*.lamp.light")
            assert endpoint["metadata"]["help"] == "Light a lamp."
            assert orjson.loads(endpoint["metadata"]["example"]) == {"lamp": "one"}
            assert set(orjson.loads(endpoint["metadata"]["schema"])) == {"request", "response"}
            (stats,) = orjson.loads((await nc.request("$SRV.STATS", b"", timeout=5)).data)["endpoints"]
            assert (stats["num_requests"], stats["num_errors"], stats["last_error"]) == (2, 1, "lamp.not-found")
            assert stats["average_processing_time"] > 0

    uvloop.run(main())


def test_queries_are_answered_flat(connecting) -> None:
    async def main() -> None:
        async def look(request: Request) -> Reply:
            return Reply({"items": [request.name], "next": None}, seq=3)

        async with connecting() as nc, await serve_queries(nc, {"lamps": ("list", "get")}, look):
            caller = Caller(nc)
            assert await caller.query("default", "lamps", "list") == {"ok": True, "seq": 3, "items": ["lamps.list"], "next": None}
            with pytest.raises(Refused) as refused:
                await caller.query("default", "lamps", "lst")
            assert (refused.value.code, refused.value.details) == ("query.unknown", {"nearest": ["lamps.list", "lamps.get"]})

    uvloop.run(main())


def test_endpoints_answer_again_after_the_server_was_killed(connecting, server) -> None:
    async def main() -> None:
        async with connecting() as nc, connecting() as other, await serve_commands(nc, LAMPS, light):
            server.kill()
            asked = asyncio.create_task(Caller(other).command("default", "lamp.light", {"lamp": "one"}, timeout=30))
            await asyncio.to_thread(server.start)
            assert (await asked)["id"] == "one"

    uvloop.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_a_stranger_publishes_stops_the_service(connecting, seed) -> None:
    """Random bytes as body, headers and actor; afterwards the service still answers."""

    async def main() -> None:
        async with connecting() as nc, await serve_commands(nc, LAMPS, light):
            for _ in range(100):
                headers = {"traceparent": os.urandom(9).hex(), "Strand-Actor": "\u2603" * 3, "Nats-Request-Info": "[1"}
                reply = await nc.request("strand.v1.cmd.default.lamp.light", os.urandom(64), headers=headers, timeout=5)
                assert orjson.loads(reply.data)["error"]["code"] == "command.invalid"
            assert (await Caller(nc).command("default", "lamp.light", {"lamp": "one"}))["ok"]

    uvloop.run(main())


@pytest.mark.parametrize(
    "bad",
    [
        b"PUB strand.v1.cmd.default.lamp.\xff\xfe 2\r\nhi\r\n",
        b"PUB strand.v1.cmd.default.lamp.light _INBOX.\xff 2\r\nhi\r\n",
        b"HPUB strand.v1.cmd.default.lamp.light 20 22\r\nNATS/1.0 \xff\xfe\xff x\xff\r\n\r\nhi\r\n",
        b"HPUB strand.v1.cmd.default.lamp.light 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        b"HPUB strand.v1.cmd.default.lamp.light 8 10\r\nNATS/1.0hi\r\n",
    ],
)
def test_bytes_that_are_no_text_do_not_kill_the_connection(connecting, server, bad) -> None:
    """nats-py's read loop dies of them, silently; here the same connection goes on, without waiting for its watchdog."""

    def publish() -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as raw, raw.makefile("rb") as lines:
            lines.readline()
            raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + bad + b"PING\r\n")
            assert lines.readline()

    async def main() -> None:
        async with connecting() as nc, connecting() as other, await serve_commands(nc, LAMPS, light):
            await asyncio.to_thread(publish)
            reply = await other.request("strand.v1.cmd.default.lamp.light", b'{"lamp":"one"}', timeout=2)
            assert orjson.loads(reply.data)["ok"]
            assert nc.stats["reconnects"] == 0

    uvloop.run(main())
