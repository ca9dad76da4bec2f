"""A new agent process finds what the last one left: in its journal, on its disk, and still running."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from datetime import timedelta

from support.local_node import SNAPSHOT
from support.records import record

from agents.adoption import Seen, plan, say_what_lives
from agents.drivers.driver import Condition, Observed
from domain.nodes.orders import Observation, ReportKind, Verb


def told(rig, what):
    return [report for report in rig.reports if report.verb == what]


def test_what_runs_is_recovered_watched_and_told(rig, run):
    async def scenario():
        async with rig.life(orderly=False):
            await rig.up()
            await rig.up("two", cmd=["sleep", "0.3"])
            await rig.tell(Verb.SANDBOX_PAUSE, {"sandbox_id": rig.sandbox()})
        async with rig.life():
            assert rig.complete
            await say_what_lives(rig.node, "boot-2", complete=rig.complete)
            assert told(rig, Observation.SANDBOXES)[0].body == {
                "complete": True,
                "sandboxes": {rig.sandbox(): "paused", rig.sandbox("two"): "running"},
            }
            await rig.eventually(lambda: told(rig, Observation.SANDBOX_EXITED))
            assert told(rig, Observation.SANDBOX_EXITED)[0].body["sandbox_id"] == rig.sandbox("two")
            assert (await rig.tell(Verb.SANDBOX_RESUME, {"sandbox_id": rig.sandbox()})).kind is ReportKind.DONE

    run(scenario())


def test_what_ended_or_vanished_meanwhile_is_told(rig, run):
    async def scenario():
        async with rig.life(orderly=False):
            both = {await rig.up(cmd=["sleep", "0.05"]), await rig.up("two")}
            await rig.driver.destroy(rig.sandbox("two"))
            for watch in list(rig.node.watches.values()):
                watch.cancel()
            await rig.eventually(lambda: _exited(rig))
        async with rig.life():
            await rig.eventually(lambda: {report.body["sandbox_id"] for report in told(rig, Observation.SANDBOX_EXITED)} == both)
            reasons = {report.body["sandbox_id"]: report.body["reason"] for report in told(rig, Observation.SANDBOX_EXITED)}
            assert reasons == {rig.sandbox(): "exited", rig.sandbox("two"): "lost"}

    async def _exited(rig):
        return (await rig.driver.list())[rig.sandbox()].condition is Condition.EXITED

    run(scenario())


def test_orphans_are_removed_and_nothing_else(rig, run):
    async def scenario():
        async with rig.life(orderly=False) as node:
            await rig.up()
            node.journal.write({"k": "gone", "id": rig.sandbox(), "at": 0.0, "for_ever": False})  # the journal never heard of it
            await rig.up("two")
        async with rig.life():
            left = await rig.left()
            assert set(map(frozenset, left.values())) == {frozenset({rig.sandbox("two")})}

    run(scenario())


def test_a_listing_that_fails_makes_nobody_an_orphan(rig, run, monkeypatch):
    async def scenario():
        async with rig.life(orderly=False) as node:
            await rig.up()
            node.journal.write({"k": "gone", "id": rig.sandbox(), "at": 0.0, "for_ever": False})

        async def broken(_):
            raise OSError(5, "told to fail")

        monkeypatch.setattr("agents.drivers.sim.SimDriver.list", broken)
        async with rig.life():
            assert not rig.complete
            monkeypatch.undo()
            assert set(await rig.driver.list()) == {rig.sandbox()}

    run(scenario())


def test_a_report_that_the_bus_never_took_is_sent_by_the_next_process(rig, run):
    async def scenario():
        async with rig.life(orderly=False):
            order = rig.order(Verb.SANDBOX_PROVISION, rig.provision())
            rig.hear.clear()
            waiting = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: rig.node.memory.outbox)
            waiting.cancel()
        rig.hear.set()
        async with rig.life():
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].kind is ReportKind.DONE
            await rig.send(order)
            assert len(await rig.driver.list()) == 1

    run(scenario())


def test_an_exec_that_was_interrupted_is_not_run_again(rig, run):
    async def scenario():
        rig.knobs.exec_s = 1000
        async with rig.life(orderly=False):
            await rig.up()
            order = rig.order(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(), "cmd": ["sh", "-c", "echo x >> /tally"], "timeout_s": 2000})
            running = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: any(file.read_text() == "x\n" for file in rig.directory.rglob("tally")))
            running.cancel()
        rig.knobs.exec_s = 0
        async with rig.life():
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].error.code == "sandbox.exec-interrupted"
            report = await rig.send(order)
            assert report.error.code == "sandbox.exec-interrupted"
            tally = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(), "cmd": ["cat", "/tally"]})
            assert base64.b64decode(tally.body["stdout"]) == b"x\n"

    run(scenario())


def test_a_sandbox_frozen_by_a_snapshot_that_died_is_thawed(rig, run, monkeypatch):
    async def scenario():
        hanging = asyncio.Event()

        async def hang(*_):
            hanging.set()
            await asyncio.Event().wait()

        async def stays_frozen(*_):
            """The process died before it could."""

        async with rig.life(orderly=False):
            await rig.up()
            with monkeypatch.context() as patch:
                patch.setattr(rig.node.roots, "snapshot", hang)
                patch.setattr("agents.drivers.sim.SimDriver.resume", stays_frozen)
                order = rig.order(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": rig.sandbox(), "snapshot_id": SNAPSHOT})
                waiting = asyncio.create_task(rig.send(order))
                await hanging.wait()
                assert (await rig.driver.list())[rig.sandbox()].condition is Condition.PAUSED
                waiting.cancel()
                await rig.work.close(0)
        async with rig.life(resume=False):
            assert (await rig.driver.list())[rig.sandbox()].condition is Condition.RUNNING
            rig.work.resume()
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].kind is ReportKind.DONE
            assert SNAPSHOT in (await rig.node.roots.list()).snapshots

    run(scenario())


def test_an_order_that_kills_its_agent_again_and_again_is_given_up_and_undone(rig, run):
    async def scenario():
        rig.knobs.hang_start = True
        order = rig.order(Verb.SANDBOX_PROVISION, rig.provision(), deadline_s=None)
        async with rig.life(orderly=False):
            waiting = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: "start" in getattr(rig.node.memory.orders.get(order.id), "touched", ()))
            waiting.cancel()
        for life in (2, 3):
            async with rig.life(orderly=False):
                await rig.eventually(lambda: rig.node.memory.orders[order.id].begun == life)  # noqa: B023 - awaited at once
        async with rig.life():
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].error.code == "order.poisoned"
            assert await rig.left() == {}

    run(scenario())


def test_an_orderly_end_is_no_crash_and_the_work_goes_on(rig, run):
    async def scenario():
        rig.knobs.hang_start = True
        order = rig.order(Verb.SANDBOX_PROVISION, rig.provision(), deadline_s=None)
        for _ in range(5):
            async with rig.life(resume=False):
                waiting = asyncio.create_task(rig.send(order))
                await rig.eventually(lambda: getattr(rig.node.memory.orders.get(order.id), "begun", 0) == 1)
                await rig.eventually(lambda: "start" in rig.node.memory.orders[order.id].touched)
                await rig.work.close(0)
                await asyncio.gather(waiting, return_exceptions=True)
                assert rig.node.memory.orders[order.id].begun == 0
        rig.knobs.hang_start = False
        async with rig.life():
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].kind is ReportKind.DONE

    run(scenario())


def test_the_plan_is_a_function_of_what_is_known_and_what_is_seen():
    records = {r.id: r for r in map(record, ("starting", "running", "paused", "replacing", "exited", "doomed"))}
    listed = {"sim": {"sb-orphan": Observed(Condition.RUNNING)}}
    seen = Seen(drivers={**listed, "oci": {}}, roots={"sb-orphan", "sb-exited"}, addresses=None)
    recovered = [("recover", "sb-paused", "sim"), ("recover", "sb-running", "sim"), ("abandon", "sb-starting", "sim")]
    orphan = [("remove-process", "sb-orphan", "sim"), ("remove-root", "sb-orphan", "")]
    assert list(plan(records, {"sb-replacing"}, seen)) == [*orphan, *recovered]
    unsure = Seen(drivers={**listed, "oci": None}, roots={"sb-orphan"})
    assert (seen.complete, unsure.complete) == (True, False)
    assert list(plan(records, {"sb-replacing"}, unsure)) == recovered, "the other driver may run what the orphan is a part of"


def test_a_wait_for_a_port_is_not_longer_for_an_agent_that_died_meanwhile(rig, run, monkeypatch):
    """It ends when it would have ended, but not before the port was looked for (reference/miren-sandbox.md §2.4b.2)."""
    monkeypatch.setattr("agents.readiness.LAST_LOOKS_S", 0.05)

    def patient(node):
        node.settings = replace(node.settings, port_wait_s=1000)

    async def scenario():
        order = rig.order(Verb.SANDBOX_PROVISION, rig.provision(probe_port=8080), deadline_s=None)
        async with rig.life(orderly=False) as node:
            patient(node)
            waiting = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: node.memory.orders.get(order.id) and "ready" in node.memory.orders[order.id].touched)
            waiting.cancel()
        rig.now += timedelta(seconds=1001)
        async with rig.life(resume=False) as node:
            patient(node)
            rig.work.resume()
            await rig.eventually(lambda: rig.ends_of(order))
            assert rig.ends_of(order)[0].error.code == "sandbox.startup-failed"
            assert await rig.left() == {}

    run(scenario())
