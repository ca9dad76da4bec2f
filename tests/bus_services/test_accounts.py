"""Accounts: what a node may do works over its own account, and nothing else does, reply injection included."""

from __future__ import annotations

import asyncio
import stat
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import nats.errors
import orjson
import pytest

from bus import accounts, heartbeat, lanes, logs, objects, usage
from bus.accounts import Authority, Member
from bus.answers import COMMAND_ID_HEADER
from bus.client import Caller
from bus.connection import connect
from bus.dead import DeadLetters
from bus.endpoints import Reply, Request, serve_commands
from bus.jwt import UNLIMITED, Key, Kind, credentials, encode
from bus.lanes import LaneKeeper, LaneReader
from bus.logs import LogWriter
from bus.reader import Work
from bus.reports import ReportReader, report
from bus.requests import call
from bus.server import Server
from bus.streams import ensure_streams
from bus.submit import SubmitWorker, submit
from domain.kernel.command import Command
from domain.kernel.errors import Refused
from domain.kernel.registry import COMMANDS
from domain.nodes.orders import Order, Report, ReportKind, Verb

QUICK = Work(tries=3, pauses=(0.01,), grace=0.2)


class Site:
    """A server in operator mode, its authority, and connections by credentials."""

    def __init__(self, path) -> None:
        self.path = path
        self.authority = Authority.load(path / "auth")
        self.server = Server(path / "nats", config=self.authority.server_config(path / "jwt"))
        self.closed: list[str] = []

    @asynccontextmanager
    async def connected(self, creds: str, name: str = "test", timeout: float = 10):
        file = self.path / f"{name}-{id(creds)}.creds"
        accounts.write_secret(file, creds)
        nc = await connect(self.server.url, name=name, creds=file, on_closed=lambda: self.closed.append(name), timeout=timeout)
        try:
            yield nc
        finally:
            await nc.close()

    @asynccontextmanager
    async def control(self):
        """The control plane: its connection, streams, and whoever attaches lanes."""
        async with self.connected(self.authority.control_creds("control"), "control") as nc:
            await ensure_streams(nc)
            async with LaneKeeper(nc):
                yield nc

    async def admit(self, *members: Member) -> None:
        async with self.connected(self.authority.system_creds(), "system") as system:
            for member in members:
                await accounts.push(system, member)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    with site.server:
        yield site


def order(name: str) -> Order:
    return Order(id=name, verb=Verb.SANDBOX_STOP, project="p", key="k", process="sandbox", process_id="x", at=datetime.now(UTC), body={})


def said(name: str, node: str) -> Report:
    return Report(id=name, node=node, verb="sandbox-stop", kind=ReportKind.DONE, project="p", at=datetime.now(UTC))


async def count(nc, stream: str) -> int:
    return (await call(nc, f"STREAM.INFO.{stream}"))["state"]["messages"]


async def answered(nc, subject: str, body: bytes = b"{}", **more) -> bytes | None:
    """What a request is answered with; None when nobody is there for this account."""
    try:
        return (await nc.request(subject, body, timeout=0.5, **more)).data
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return None


def test_a_node_can_do_all_of_its_work_over_its_own_account(site, tmp_path, run, eventually) -> None:
    async def main() -> None:
        done: list[str] = []
        heard: list[str] = []
        beats: list[str] = []

        async def carry_out(order: Order, ack: lanes.Ack) -> None:
            await report(agent, said(f"{order.id}:done", "n1"))
            done.append(order.id)

        async def hear(report: Report) -> None:
            heard.append(report.id)

        async def beaten(node: str, at: datetime) -> None:
            beats.append(node)

        n1 = site.authority.node("n1")
        await site.admit(n1)
        async with (
            site.control() as control,
            site.connected(n1.creds, "n1") as agent,
            ReportReader(control, hear, work=QUICK),
            heartbeat.watch(control, beaten, beaten),
        ):
            await lanes.send(control, "n1", order("a"))
            async with LaneReader(agent, "n1", carry_out, work=QUICK):
                await lanes.send(control, "n1", order("b"))
                await eventually(lambda: done == ["a", "b"] and heard == ["a:done", "b:done"])

                async def empty() -> bool:
                    return await count(control, "LANES-0") == await count(control, "REPORTS") == 0

                await eventually(empty)
            await lanes.send(control, "n1", order("bad"))
            async with LaneReader(agent, "n1", lambda _, ack: ack.term("no"), work=QUICK):
                (letter,) = await eventually(DeadLetters(control).list)
                assert Order.model_validate_json(letter.body).id == "bad"
            await heartbeat.beat(agent, "n1", {})
            await eventually(lambda: beats == ["n1"])
            assert await count(control, "KV_NODES") == 1
            async with usage.hearing(control) as used:
                await control.flush()
                await usage.tell(agent, "n1", usage.messages("boot", "now", 5.0, {"sb-1": (1.0,) * len(usage.COLUMNS)}))
                await eventually(lambda: used.of("n1", "sb-1"))
            async with LogWriter(agent) as writer:
                writer.write("p", "sb-1", "stdout", b"hello\n")

            async def logged() -> list[bytes]:
                return [chunk.data async for chunk in logs.read(control, "p", "sb-1")]

            assert await eventually(logged) == [b"hello\n"]
            (tmp_path / "in").write_bytes(b"artifact" * 500_000)
            put = await objects.put_file(agent, "artifacts", "rfs-1", tmp_path / "in")
            assert await objects.get_file(agent, "artifacts", "rfs-1", tmp_path / "out", sha256=put.sha256) == 4_000_000
            assert await objects.check(control, "artifacts", "rfs-1", put.sha256)

    run(main())


def test_a_node_reaches_nothing_that_is_not_its_own(site, run) -> None:
    async def main() -> None:
        n1, n2 = site.authority.node("n1", builder=False), site.authority.node("n2")
        await site.admit(n1, n2)
        async with site.control() as control, site.connected(n1.creds, "n1") as agent:
            for node in ("n1", "n2"):
                await lanes.attach(control, node, fresh=True)
            await lanes.send(control, "n2", order("secret"))
            await control.request("strand.evt.p.sandbox.x", b"event", timeout=5)
            pulled = await answered(agent, "$JS.API.CONSUMER.MSG.NEXT.LANES-0.n1", b'{"batch":1,"no_wait":true}')
            assert pulled == b""  # 404 No Messages: its own lane answers
            for subject, body in {
                "$JS.API.CONSUMER.MSG.NEXT.LANES-0.n2": b'{"batch":1,"no_wait":true}',
                "$JS.API.CONSUMER.INFO.LANES-0.n2": b"",
                "$JS.API.CONSUMER.CREATE.LANES-0.n1.strand.lane.n1.*": b'{"config":{"deliver_subject":"strand.evt.p.sandbox.y"}}',
                "$JS.API.DIRECT.GET.EVENTS": b'{"seq":1}',
                "$JS.API.STREAM.MSG.GET.EVENTS": b'{"seq":1}',
                "$JS.API.STREAM.MSG.GET.LANES-0": b'{"seq":1}',
                "$JS.API.STREAM.PURGE.OBJ_artifacts": b"",
                "$JS.API.STREAM.DELETE.EVENTS": b"",
                "strand.evt.p.sandbox.x": b"forged",
                "strand.lane.n2.stop": b"forged",
                "strand.rpt.n2.done": b"forged",
                "strand.dead.n2.LANES-0.1": b"forged",
                "strand.dead._control.REPORTS.1": b"forged",
                "strand.attach.n2": b"{}",
                "$KV.NODES.n2": b"{}",
                "strand.usage.n2.0": b"{}",
                "strand.identity.n2": b"{}",
                "$KV.LEASES.projector": b"{}",
                "$O.artifacts.M.eA==": b"{}",
                "$O.artifacts.C.x": b"bytes",
                "strand.timer.p.sandbox.x.ttl": b"{}",
                "strand.v1.cmd.p.sandbox.create": b"{}",
            }.items():
                reply = await answered(agent, subject, body)
                assert reply is None or b'"error"' in reply, subject
            assert (await call(control, "STREAM.INFO.EVENTS"))["state"]["last_seq"] == 1
            assert await count(control, "LANES-0") == 1
            assert [await count(control, stream) for stream in ("REPORTS", "KV_NODES", "KV_LEASES", "OBJ_artifacts", "TIMERS")] == [0] * 5

    run(main())


def test_the_server_answers_a_node_nowhere_but_in_its_own_account(site, run) -> None:
    """Reply injection: the node names subjects of the control plane as reply (reference/jetstream-eventstore.md §1.7)."""

    async def main() -> None:
        n1, n2 = site.authority.node("n1"), site.authority.node("n2")
        await site.admit(n1, n2)
        async with site.control() as control, site.connected(n1.creds, "n1") as agent:
            await lanes.attach(control, "n1", fresh=True)
            await lanes.attach(control, "n2", fresh=True)
            await lanes.send(control, "n1", order("a"))
            targets = (
                "strand.evt.p.sandbox.forged",
                "strand.lane.n2.stop",
                "strand.rpt.n2.done",
                "$KV.LEASES.x",
                "$JS.API.STREAM.PURGE.EVENTS",
            )
            for reply in targets:
                await agent.publish("$JS.API.CONSUMER.MSG.NEXT.LANES-0.n1", b'{"batch":1,"no_wait":true}', reply=reply)
                await agent.publish("strand.rpt.n1.done", b"{}", reply=reply)
                await agent.publish("$KV.NODES.n1", b"{}", reply=reply)
                await agent.publish("$O.artifacts.C.x", b"{}", reply=reply)
                await agent.publish("strand.attach.n1", b"{}", reply=reply)
                await agent.publish("$JS.API.DIRECT.GET.OBJ_artifacts", b'{"last_by_subj":"$O.artifacts.C.x"}', reply=reply)
            # what came later was answered, so everything before it was dealt with
            assert (await report(agent, said("honest", "n1"))).seq == len(targets) + 1
            await agent.flush()
            await control.flush()
            assert [await count(control, stream) for stream in ("EVENTS", "LANES-0", "KV_LEASES")] == [0, 1, 0]
            assert (await call(control, "STREAM.INFO.REPORTS", {"subjects_filter": ">"}))["state"]["subjects"] == {
                "strand.rpt.n1.done": len(targets) + 1
            }

    run(main())


def test_the_same_attack_works_without_accounts_so_the_test_above_can_fail(server, run) -> None:
    async def main() -> None:
        nc = await connect(server.url, name="n1", on_closed=lambda: None)
        await ensure_streams(nc)
        await nc.publish("strand.rpt.n1.done", b"{}", reply="strand.evt.p.sandbox.forged")
        await report(nc, said("honest", "n1"))
        await nc.flush()
        assert await count(nc, "EVENTS") == 1
        await nc.close()

    run(main())


def test_a_header_cannot_wipe_what_other_nodes_stored(site, tmp_path, run) -> None:
    async def main() -> None:
        n1, n2 = site.authority.node("n1"), site.authority.node("n2")
        await site.admit(n1, n2)
        async with site.control() as control, site.connected(n1.creds, "n1") as one, site.connected(n2.creds, "n2") as two:
            (tmp_path / "in").write_bytes(b"x" * 1000)
            put = await objects.put_file(two, "artifacts", "rfs-1", tmp_path / "in")
            await heartbeat.beat(two, "n2")
            await report(two, said("b", "n2"))
            for subject in ("$KV.NODES.n1", "$O.artifacts.C.y", "strand.rpt.n1.done", "strand.log.p.sb-1.stdout"):
                for rollup in ("all", "sub"):
                    await answered(one, subject, headers={"Nats-Rollup": rollup})
            assert await objects.check(control, "artifacts", "rfs-1", put.sha256)
            assert (await call(control, "STREAM.INFO.KV_NODES", {"subjects_filter": ">"}))["state"]["subjects"]["$KV.NODES.n2"] == 1
            assert await count(control, "REPORTS") >= 1

    run(main())


def test_an_account_made_by_mistake_with_anothers_subjects_opens_no_door(site, run) -> None:
    """Signed by the operator, but without the control plane's activation, or with the one given to another account."""

    async def main() -> None:
        authority = site.authority
        authority.node("n2")
        for token in (None, "n2"):
            evil = Key.new(Kind.ACCOUNT)
            imports = [authority._import(Key.read((site.path / "auth/members/node-n2.nk").read_text()), accounts.REPORT, "strand.rpt.n2.*")]
            if token is None:
                del imports[0]["token"]
            jwt = encode(authority._operator, evil.public, "evil", {"type": "account", "imports": imports, "limits": UNLIMITED})
            member = Member("evil", evil.public, jwt, credentials(evil, "evil"))
            async with site.control() as control:
                try:
                    await site.admit(member)
                    async with site.connected(member.creds, "evil") as agent:
                        assert await answered(agent, "strand.rpt.n2.done") is None
                except Refused:
                    pass  # the server would not even have it
                assert await count(control, "REPORTS") == 0

    run(main())


def test_an_evicted_node_is_disconnected_at_once_and_its_successor_has_another_key(site, run, eventually) -> None:
    async def main() -> None:
        n1 = site.authority.node("n1")
        assert site.authority.node("n1").account == n1.account
        await site.admit(n1)
        async with site.control(), site.connected(n1.creds, "n1") as agent:
            await report(agent, said("a", "n1"))
            public = site.authority.forget("node-n1")
            assert public == n1.account
            async with site.connected(site.authority.system_creds(), "system") as system:
                await accounts.delete(system, site.authority, public)
            await eventually(lambda: not agent.is_connected)
            successor = site.authority.node("n1")
            assert successor.account != n1.account
            await site.admit(successor)
            async with site.connected(successor.creds, "n1-again") as again:
                await report(again, said("b", "n1"))
            assert not agent.is_connected

    run(main())


def test_credentials_end_when_they_were_said_to(site, run, eventually) -> None:
    async def main() -> None:
        n1, end = site.authority.node("n1", valid_s=1), time.time() + 1
        await site.admit(n1)
        async with site.connected(n1.creds, "n1") as agent:
            await eventually(lambda: not agent.is_connected)
        await eventually(lambda: time.time() > end + 1)
        with pytest.raises(Refused):
            async with site.connected(n1.creds, "n1", timeout=1):
                pass

    run(main())


def test_accounts_and_work_survive_a_killed_server(site, run, eventually) -> None:
    async def main() -> None:
        done: list[str] = []

        async def carry_out(order: Order, ack: lanes.Ack) -> None:
            done.append(order.id)

        n1 = site.authority.node("n1")
        await site.admit(n1)
        async with (
            site.control() as control,
            site.connected(n1.creds, "n1") as agent,
            LaneReader(agent, "n1", carry_out, work=QUICK),
        ):
            await lanes.send(control, "n1", order("a"))
            await eventually(lambda: done == ["a"])
            site.server.kill()
            await asyncio.to_thread(site.server.start)
            await lanes.send(control, "n1", order("b"))
            await report(agent, said("c", "n1"))
            await eventually(lambda: done == ["a", "b"], within=20)

    run(main())


class LampLight(Command):
    NOUN = "lamp"
    VERB = "turn"


del COMMANDS["lamp.turn"]  # the registry is the product's; this command is the test's


def test_a_project_commands_only_itself_and_its_actor_is_what_the_server_says(site, run, eventually) -> None:
    async def main() -> None:
        async def handle(request: Request) -> Reply:
            return Reply({"project": request.project, "actor": request.actor})

        p = site.authority.project("p", user="ann")
        await site.admit(p)
        async with (
            site.control() as control,
            site.connected(p.creds, "ann") as ann,
            await serve_commands(control, {"lamp.turn": LampLight}, handle),
            SubmitWorker(control, handle, commands=["lamp.turn"]),
        ):
            caller = Caller(ann, actor="root")
            actor = (await caller.command("p", "lamp.turn", {}))["result"]["actor"]
            assert actor.startswith("ann/U")
            with pytest.raises(Refused) as refused:
                await caller.command("q", "lamp.turn", {}, timeout=0.2)
            assert refused.value.code == "bus.unavailable"
            command_id, _ = await submit(ann, "p", "lamp.turn", {})

            async def outcome() -> bytes | None:
                data = await answered(ann, f"$JS.API.DIRECT.GET.OUTCOME.strand.v1.outcome.p.{command_id}", b"")
                return data or None

            assert orjson.loads(await eventually(outcome))["result"]["actor"] == "project/p"
            assert await answered(ann, f"$JS.API.DIRECT.GET.OUTCOME.strand.v1.outcome.q.{command_id}", b"") is None
            for subject in ("strand.v1.cmd.p.lamp.turn", "strand.v1.submit.p.lamp.turn"):
                await ann.publish(subject, b"{}", reply="strand.evt.p.sandbox.forged", headers={COMMAND_ID_HEADER: "x"})
            await caller.command("p", "lamp.turn", {})
            assert await count(control, "EVENTS") == 0

    run(main())


def test_secrets_are_their_owners_only_kept_and_checked(tmp_path) -> None:
    first = Authority.load(tmp_path / "auth")
    member = first.node("n1")
    again = Authority.load(tmp_path / "auth")
    assert again.node("n1").account == member.account
    assert first.server_config(tmp_path).splitlines()[1] == again.server_config(tmp_path).splitlines()[1]
    files = [path for path in (tmp_path / "auth").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "auth").stat().st_mode) == 0o700
    assert first.forget("node-n2") is None
    assert Key.new(Kind.USER).seed not in repr(Key.new(Kind.USER))
    (tmp_path / "auth" / "operator.nk").write_text("damaged")
    with pytest.raises(ValueError, match="seed"):
        Authority.load(tmp_path / "auth")
