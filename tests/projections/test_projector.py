"""The projector against a real server: what is written is seen, asked for, rebuilt, and survives being killed."""

import asyncio
from contextlib import asynccontextmanager, suppress

import orjson
import pytest
from support.bus import connected
from support.histories import PROJECTS, History, publish, subject, with_nodes
from support.waiting import eventually, run

from bus.client import Caller
from bus.heartbeat import beat
from bus.streams import ensure_streams
from domain.kernel.errors import Refused
from projections.buslog import BusLog
from projections.export import dump
from projections.postgres import PostgresStore
from projections.projector import Projector
from projections.sqlite import SqliteStore
from projections.views import VIEWS


@asynccontextmanager
async def projecting(nc, path, views=VIEWS):
    store = SqliteStore(path / "views.db")
    try:
        async with Projector(nc, store, BusLog(nc), views) as projector:
            yield projector
    finally:
        store.close()


def test_queries_see_the_whole_log(server, tmp_path):
    async def main():
        async with connected(server) as nc:
            history = History(5)
            await publish(nc, history.walk(3000))
            async with projecting(nc, tmp_path) as projector:
                await projector.caught_up()
                caller = Caller(nc)
                sandboxes = {
                    a.id: a
                    for (cls, project, _), a in history.aggregates.items()
                    if cls.TOPIC == "sandbox" and project == "default" and not a.forgotten
                }
                reply = await caller.query("default", "sandboxes", "list", {"min_seq": len(history.messages)})
                assert {i["sandbox_id"]: i["state"] for i in reply["items"]} == {k: a.state.value for k, a in sandboxes.items()}
                assert reply["seq"] == len(history.messages)
                assert reply["next"] is None
                one = next(iter(sandboxes))
                got = await caller.query("default", "sandboxes", "get", {"id": one})
                assert [i["sandbox_id"] for i in got["items"]] == [one]
                summary = await caller.query("default", "sandboxes", "summary")
                assert summary["items"][0]["total"] == len(sandboxes)
                nodes = await caller.query("acme", "nodes", "list")
                assert [i["node_id"] for i in nodes["items"]] == sorted(i["node_id"] for i in nodes["items"])
                assert nodes["items"]

    run(main())


def test_what_was_just_written_is_waited_for(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            await projector.caught_up()
            messages = History(5).walk(300)
            caller = Caller(nc)
            asking = asyncio.create_task(caller.query("default", "jobs", "list", {"min_seq": len(messages)}))
            await publish(nc, messages)
            assert (await asking)["seq"] == len(messages)

    run(main())


def test_a_position_that_does_not_come_is_said_to_be_behind(server, tmp_path, monkeypatch):
    monkeypatch.setattr("projections.queries.BEHIND_S", 0.05)

    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            with pytest.raises(Refused) as refused:
                await Caller(nc).query("default", "jobs", "list", {"min_seq": 99})
            assert (refused.value.code, refused.value.retryable) == ("view.behind", True)

    run(main())


@pytest.mark.parametrize(
    ("view", "verb", "body", "code", "field"),
    [
        ("sandboxes", "list", {"stat": "RUNNING"}, "query.invalid", "stat"),
        ("sandboxes", "list", {"limit": 1001}, "query.invalid", "limit"),
        ("sandboxes", "list", {"limit": True}, "query.invalid", "limit"),
        ("sandboxes", "list", {"cursor": "§"}, "query.invalid", "cursor"),
        ("sandboxes", "list", {"state": ["RUNNING"]}, "query.invalid", "state"),
        ("sandboxes", "list", {"ports": "80"}, "query.invalid", "ports"),
        ("sandboxes", "list", {"as_of": "yesterday"}, "query.invalid", "as_of"),
        ("sandboxes", "list", {"as_of": 10**9}, "query.invalid", "as_of"),
        ("sandboxes", "list", {"min_seq": -1}, "query.invalid", "min_seq"),
        ("sandboxes", "get", {}, "query.invalid", "id"),
        ("sandboxes", "get", {"id": "sb-nope"}, "sandbox.not-found", "id"),
        ("templates", "get", {"id": "no-such-alias"}, "template.not-found", "id"),
        ("compat-matrix", "get", {"id": "no-such-alias"}, "template.not-found", "id"),
        ("nodes", "get", {"id": "n9"}, "node.not-found", "id"),
        ("events", "read", {"limit": 0}, "query.invalid", "limit"),
        ("events", "read", {"id": "a.b"}, "query.invalid", "type"),
        ("events", "read", {"what": 1}, "query.invalid", "what"),
        ("views", "digest", {"view": "nope"}, "query.invalid", "view"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_field(shared_projector, view, verb, body, code, field):
    with pytest.raises(Refused) as refused:
        shared_projector(lambda nc: Caller(nc).query("default", view, verb, body))
    assert refused.value.code == code
    assert field in refused.value.details


@pytest.fixture
def shared_projector(shared_server, tmp_path):
    def ask(question):
        async def main():
            async with connected(shared_server) as nc, projecting(nc, tmp_path):
                return await question(nc)

        return run(main())

    return ask


def test_a_template_is_found_by_its_alias_everywhere(server, tmp_path):
    async def main():
        async with connected(server) as nc:
            history = History(11)
            await publish(nc, history.walk(5000))
            held = [
                (project, a.id, a.template_id)
                for (cls, project, _), a in history.aggregates.items()
                if cls.TOPIC == "alias" and a.template_id and (shown(history, project, a.template_id))
            ]
            assert held
            async with projecting(nc, tmp_path) as projector:
                await projector.caught_up()
                caller = Caller(nc)
                for project, alias, template_id in held:
                    for view in ("templates", "compat-matrix"):
                        got = await caller.query(project, view, "get", {"id": alias})
                        assert got["items"][0]["template_id"] == template_id
                    by_alias = await caller.query(project, "sandboxes", "list", {"template_id": alias})
                    by_id = await caller.query(project, "sandboxes", "list", {"template_id": template_id})
                    assert by_alias["items"] == by_id["items"]

    run(main())


def shown(history, project, template_id):
    template = next((a for (cls, p, i), a in history.aggregates.items() if (cls.TOPIC, p, i) == ("template", project, template_id)), None)
    return template is not None and template.status != "DELETED"


def test_pages_neither_skip_nor_repeat_while_items_come_and_go(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history = History(2)
            await publish(nc, history.walk(2000))
            caller = Caller(nc)
            first = await caller.query("default", "replicas", "list", {"min_seq": len(history.messages)})
            stays = {i["replica_id"] for i in first["items"]}
            seen, cursor = [], None
            while True:
                reply = await caller.query("default", "replicas", "list", {"limit": 2, "cursor": cursor})
                seen += [i["replica_id"] for i in reply["items"]]
                assert len(reply["items"]) <= 2
                cursor = reply["next"]
                if cursor is None:
                    break
                await publish(nc, history.walk(50))
                await projector.reached("replicas", len(history.messages), 5)
            last = await caller.query("default", "replicas", "list")
            stays &= {i["replica_id"] for i in last["items"]}
            assert seen == sorted(set(seen))
            assert stays <= set(seen)

    run(main())


def test_a_view_as_of_a_position_or_instant_equals_what_it_was_then(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history, caller, then = History(4), Caller(nc), {}
            for _ in range(2):
                await publish(nc, history.walk(800))
                seq = len(history.messages)
                assert await projector.reached("sandboxes", seq, 5)
                then[seq] = (orjson.loads(history.messages[-1][1])["time"], await everything(caller, min_seq=seq))
            for seq, (instant, views) in then.items():
                assert await everything(caller, as_of=seq) == views
                assert await everything(caller, as_of=instant) == views
            before = await caller.query("default", "sandboxes", "list", {"as_of": "2019-01-01T00:00:00Z"})
            assert (before["seq"], before["items"]) == (0, [])

    run(main())


async def everything(caller, **when):
    found = {}
    for project in PROJECTS:
        for view in VIEWS:
            for verb in view.verbs:
                if verb not in {"get", *view.asks}:
                    reply = await caller.query(project, view.name, verb, dict(when))
                    found[project, view.name, verb] = (reply["seq"], reply["items"])
    return found


def test_the_log_is_read_page_by_page_and_filtered(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            history, caller = History(9), Caller(nc)
            await publish(nc, history.walk(1500))
            mine = [
                (seq, e["type"], body["id"])
                for seq, data in history.messages
                if (body := orjson.loads(data))["project"] == "default"
                for e in body["events"]
            ]
            assert await pages(caller, {"limit": 7}) == mine
            assert await pages(caller, {"type": "sandbox"}) == [m for m in mine if m[1].startswith("sandbox.")]
            assert await pages(caller, {"type": "job.created"}) == [m for m in mine if m[1] == "job.created"]
            assert await pages(caller, {"id": mine[0][2]}) == [m for m in mine if m[2] == mine[0][2]]
            middle = mine[len(mine) // 2][0]
            assert await pages(caller, {"until": middle}) == [m for m in mine if m[0] <= middle]
            assert await pages(caller, {"after": middle}) == [m for m in mine if m[0] > middle]
            item = (await caller.query("default", "events", "read", {"limit": 1}))["items"][0]
            assert set(item) == {"seq", "commit", "command", "cause", "actor", "project", "type", "id", "version", "time", "data"}

    run(main())


async def pages(caller, body):
    found, after = [], body.get("after", 0)
    while after is not None:
        reply = await caller.query("default", "events", "read", {**body, "after": after})
        found += [(i["seq"], i["type"], i["id"]) for i in reply["items"]]
        after = reply["next"]
    return found


def test_verifying_names_what_does_not_fit(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            history, caller = History(9), Caller(nc)
            await publish(nc, history.walk(400))
            good = (await caller.query("default", "events", "verify"))["items"][0]
            assert (good["intact"], good["faults"]) == (True, [])
            data = next(d for _, d in history.messages if orjson.loads(d)["project"] == "default")
            await nc.jetstream().publish(subject(data), data.replace(b'"tester"', b'"nobody"'))
            bad = (await caller.query("default", "events", "verify", {"id": orjson.loads(data)["id"]}))["items"][0]
            assert not bad["intact"]
            assert bad["faults"][0]["seq"] == len(history.messages) + 1

    run(main())


def test_a_rebuilt_view_takes_the_live_ones_place_unnoticed(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(4000))
            await projector.caught_up()
            before = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)})
            writing = asyncio.create_task(publish(nc, history.walk(2000)))
            number = {}
            for view in VIEWS:
                reply = await caller.command("default", "view.rebuild", {"view": view.name, "wait_s": 30})
                assert reply["result"]["settled"]
                number[view.name] = reply["result"]["generation"]
            await writing
            after = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)})
            assert {i["view"]: i["generation"] for i in after["items"]} == number
            assert {i["view"] for i in before["items"]} == set(number)
            assert [g.number for g in projector.store.generations()] == [number[v] for v in sorted(number)]
            replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)})
            assert [i["sha256"] for i in replayed["items"]] == [i["sha256"] for i in after["items"]]

    run(main())


def test_a_rebuild_repeated_with_the_same_id_gives_the_same_generation(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            caller = Caller(nc)
            first = await caller.command("default", "view.rebuild", {"view": "jobs", "wait_s": 5}, command_id="once")
            again = await caller.command("default", "view.rebuild", {"view": "jobs"}, command_id="once")
            other = await caller.command("default", "view.rebuild", {"view": "jobs", "wait_s": 5})
            assert first["result"]["generation"] == again["result"]["generation"] < other["result"]["generation"]
            with pytest.raises(Refused, match="another command"):
                await caller.command("default", "view.rebuild", {"view": "nodes"}, command_id="once")
            with pytest.raises(Refused, match="no view"):
                await caller.command("default", "view.rebuild", {"view": "nope"})

    run(main())


def test_a_copy_until_a_position_stays_beside_the_live_view(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(3000))
            half = len(history.messages) // 2
            reply = await caller.command("default", "view.rebuild", {"view": "sandboxes", "until": str(half), "wait_s": 30})
            with projector.store.read("sandboxes", reply["result"]["generation"]) as reader:
                assert reader.position == half
                copy = dump(reader)
            store = await projector.queries._moments.at("sandboxes", half)
            with store.read("sandboxes") as reader:
                assert dump(reader) == copy
            live = await caller.query("default", "sandboxes", "list", {"min_seq": len(history.messages)})
            assert live["seq"] == len(history.messages)

    run(main())


def test_a_restarted_projector_goes_on_where_it_was(server, tmp_path):
    async def main():
        async with connected(server) as nc:
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(2000))
            async with projecting(nc, tmp_path) as projector:
                await projector.caught_up()
                first = projector.live.engine.position
            await publish(nc, history.walk(500))
            async with projecting(nc, tmp_path) as projector:
                assert projector.live.engine.position == first
                digests = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)})
                replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)})
                assert [i["sha256"] for i in digests["items"]] == [i["sha256"] for i in replayed["items"]]

    run(main())


def test_a_view_of_newer_code_is_rebuilt_while_the_old_one_answers(server, tmp_path, monkeypatch):
    async def main():
        async with connected(server) as nc:
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(2000))
            async with projecting(nc, tmp_path) as projector:
                await projector.caught_up()
                before = {g.view: g.number for g in projector.store.generations()}
            jobs = next(v for v in VIEWS if v.name == "jobs")
            monkeypatch.setattr(jobs, "schema", jobs.schema + 1)
            async with projecting(nc, tmp_path) as projector:
                assert (await caller.query("default", "jobs", "list"))["items"]
                await eventually(lambda: next(i for i in projector.states() if i["view"] == "jobs")["state"] == "live")
                after = {g.view: g.number for g in projector.store.generations()}
                assert after == {**before, "jobs": before["jobs"] + 1}

    run(main())


def test_views_of_another_log_are_begun_anew(server, tmp_path):
    async def main():
        async with connected(server) as nc:
            await publish(nc, History(6).walk(2000))
            async with projecting(nc, tmp_path) as projector:
                await projector.caught_up()
            await nc.jetstream().delete_stream("EVENTS")
            await ensure_streams(nc)
            history, caller = History(7), Caller(nc)
            await publish(nc, history.walk(500))
            async with projecting(nc, tmp_path):
                live = await eventually(lambda: digests_at(caller, len(history.messages)))
                replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)})
                assert live == [i["sha256"] for i in replayed["items"]]

    run(main())


async def digests_at(caller, seq):
    with suppress(Refused):  # for a moment there is no such view
        reply = await caller.query("default", "views", "digest")
        return [i["sha256"] for i in reply["items"]] if {i["seq"] for i in reply["items"]} == {seq} else None


def test_the_server_dying_under_it_costs_nothing(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(1000))
            await projector.caught_up()
            server.kill()
            assert projector.live.engine.position
            await asyncio.to_thread(server.start)
            await eventually(lambda: nc.is_connected, within=30)
            await publish(nc, history.walk(1000))
            digests = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)}, timeout=30)
            replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)}, timeout=30)
            assert [i["sha256"] for i in digests["items"]] == [i["sha256"] for i in replayed["items"]]

    run(main())


def test_a_store_that_fails_for_a_while_loses_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr("projections.live.PAUSES_S", (0.01,))

    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path) as projector:
            history, caller, failures = History(6), Caller(nc), iter(range(3))
            write = projector.store.write

            def full(changes):
                if next(failures, None) is not None:
                    raise OSError(28, "No space left on device")
                write(changes)

            await projector.caught_up()
            monkeypatch.setattr(projector.store, "write", full)
            await publish(nc, history.walk(1000))
            digests = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)})
            assert next(failures, None) is None
            replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)})
            assert [i["sha256"] for i in digests["items"]] == [i["sha256"] for i in replayed["items"]]

    run(main())


def test_a_node_that_beats_was_seen_just_now_and_the_view_does_not_change_by_it(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            history, caller = History(6), Caller(nc)
            await publish(nc, history.walk(1000))
            before = await caller.query("default", "views", "digest", {"view": "nodes", "min_seq": len(history.messages)})
            await beat(nc, "n1")
            await eventually(lambda: seen_since(caller, "n1", "2021"))
            assert not await seen_since(caller, "n2", "2021")
            assert not await seen_since(caller, "n1", "2021", as_of=len(history.messages))
            after = await caller.query("default", "views", "digest", {"view": "nodes"})
            assert before["items"] == after["items"]

    run(main())


def test_what_a_node_says_of_its_disk_is_shown_now_and_in_no_answer_about_then(server, tmp_path):
    async def main():
        async with connected(server) as nc, projecting(nc, tmp_path):
            history, caller = with_nodes("ONLINE", "OFFLINE"), Caller(nc)
            await publish(nc, history.messages)
            nodes = (await caller.query("default", "nodes", "list", {"min_seq": len(history.messages)}))["items"]
            here = next(node["node_id"] for node in nodes if node["liveness"] == "ONLINE" and node["storage"]["mode"] != "unknown")
            gone = next(n["node_id"] for n in nodes if n["liveness"] != "ONLINE" and n["storage"]["mode"] == "unknown")
            used = {"cpu": 1, "memory_mb": 2, "disk_mb": 3, "sandboxes": 4}
            for node in (here, gone):
                await beat(nc, node, {"storage_pct": 12.5, "used": used, "orders": 1})
            await eventually(lambda: pct(caller, "nodes", here, 12.5))
            assert await pct(caller, "storage", here, 12.5)
            assert not await pct(caller, "storage", here, 12.5, as_of=len(history.messages))
            assert not await pct(caller, "storage", gone, 12.5)
            reported = {node["node_id"]: node["reported"] for node in (await caller.query("default", "nodes", "list"))["items"]}
            assert (reported[here], reported[gone]) == ({"used": used, "orders": 1}, None)

    run(main())


async def pct(caller, view, node, wanted, **when):
    item = (await caller.query("default", view, "get", {"id": node, **when}))["items"][0]
    return item.get("storage", item)["usage_pct"] == wanted


async def seen_since(caller, node, day, **when):
    reply = await caller.query("default", "nodes", "get", {"id": node, **when})
    return (reply["items"][0]["last_seen"] or "") > day


@pytest.mark.root
def test_two_projectors_on_one_store_do_not_corrupt_it(server, postgres_url, monkeypatch):
    monkeypatch.setattr("projections.live.PAUSES_S", (0.01,))

    async def main():
        async with connected(server) as nc:
            history, caller = History(6), Caller(nc)
            stores = [PostgresStore(postgres_url), PostgresStore(postgres_url)]
            async with Projector(nc, stores[0], BusLog(nc), VIEWS) as first:
                await publish(nc, history.walk(500))
                await first.reached("jobs", len(history.messages), 10)
                async with Projector(nc, stores[1], BusLog(nc), VIEWS) as second:
                    for _ in range(3):
                        await publish(nc, history.walk(500))
                    await caller.command("default", "view.rebuild", {"view": "sandboxes", "wait_s": 20})
                    await publish(nc, history.walk(500))
                    for projector in (first, second):
                        assert await projector.reached("sandboxes", len(history.messages), 20)
                    live = await caller.query("default", "views", "digest", {"min_seq": len(history.messages)})
                    replayed = await caller.query("default", "views", "digest", {"as_of": len(history.messages)})
                    assert [i["sha256"] for i in live["items"]] == [i["sha256"] for i in replayed["items"]]
            for store in stores:
                store.close()

    run(main())
