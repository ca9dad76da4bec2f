"""Orders about sandboxes on a node: what they bring about, what they refuse, and what they leave."""

from __future__ import annotations

import asyncio
import base64
from datetime import timedelta

from support.local_node import SNAPSHOT, NoAck

from domain.nodes.orders import Observation, ReportKind, Verb


def test_a_sandbox_comes_up_works_and_goes_without_a_trace(rig, run):
    async def scenario():
        async with rig.life():
            report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision(cmd=["sh", "-c", "echo hello; sleep 100"], ports=[80]))
            assert (report.kind, report.body["driver"]) == (ReportKind.DONE, "sim")
            assert rig.steps_done(report) == ["artifact", "root", "network", "logs", "start", "ready"]
            assert report.body["ports"] == [{"port": 80, "address": "", "status": "declared", "bound": None}]
            report = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(), "cmd": ["echo", "hi"]})
            assert base64.b64decode(report.body["stdout"]) == b"hi\n"
            report = await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 5})
            assert (report.kind, report.body["exit_code"]) == (ReportKind.DONE, 143)
            assert await rig.left() == {}

    run(scenario())


def test_the_same_order_twice_is_carried_out_once_and_answered_twice(rig, run):
    async def scenario():
        async with rig.life():
            await rig.up()
            order = rig.order(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(), "cmd": ["sh", "-c", "echo x >> /tally"]})
            first = await rig.send(order)
            again = await rig.send(order)
            assert (again.kind, again.body) == (first.kind, first.body)
            assert again.id != first.id, "the bus would take it for the answer that it has"
            assert len(rig.ends_of(order)) == 2
            tally = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(), "cmd": ["cat", "/tally"]})
            assert base64.b64decode(tally.body["stdout"]) == b"x\n"

    run(scenario())


def test_a_start_that_fails_or_whose_answer_is_lost_leaves_nothing(rig, run):
    async def scenario():
        async with rig.life():
            for knob in ("fail_start", "lose_reply"):
                setattr(rig.knobs, knob, 1)
                report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision())
                assert (report.kind, report.body["failed_step"], report.body["uncompensated"]) == (ReportKind.FAILED, "start", [])
                assert await rig.left() == {}
            await rig.up()

    run(scenario())


def test_a_destroy_fences_a_provisioning_that_hangs(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.hang_start = True
            provision = rig.order(Verb.SANDBOX_PROVISION, rig.provision())
            coming_up = asyncio.create_task(rig.send(provision))
            await rig.eventually(lambda: "start" in getattr(rig.node.memory.orders.get(provision.id), "touched", ()))
            destroyed = await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 0})
            report = await coming_up
            assert (report.kind, report.error.code) == (ReportKind.FAILED, "sandbox.superseded")
            assert destroyed.kind is ReportKind.DONE
            assert await rig.left() == {}
            rig.knobs.hang_start = False
            again = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision())
            assert again.error.code == "sandbox.superseded", "what was destroyed does not come back"

    run(scenario())


def test_a_provisioning_behind_its_own_destroy_does_not_begin(rig, run):
    """Both are on the lane before the agent starts."""

    async def scenario():
        async with rig.life():
            provision = rig.order(Verb.SANDBOX_PROVISION, rig.provision())
            destroy = rig.order(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 0})
            rig.work.arrived(destroy)
            report = await rig.send(provision)
            assert report.error.code == "sandbox.superseded"
            assert report.body["steps"] == []
            assert (await rig.send(destroy)).kind is ReportKind.DONE
            assert await rig.left() == {}

    run(scenario())


def test_a_second_destroy_cuts_a_gentle_one_short(rig, run):
    async def scenario():
        async with rig.life():
            await rig.up()
            rig.knobs.stop_s = 1000
            gentle = asyncio.create_task(rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 500}))
            await rig.eventually(lambda: rig.sandbox() in rig.node.dooms)
            rig.knobs.stop_s = 0.01
            second = await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 0})
            assert (await gentle).kind is second.kind is ReportKind.DONE
            assert await rig.left() == {}

    run(scenario())


def test_pausing_and_resuming_bring_a_state_about(rig, run):
    async def scenario():
        async with rig.life():
            target = {"sandbox_id": await rig.up()}
            for verb, condition in ((Verb.SANDBOX_PAUSE, "paused"), (Verb.SANDBOX_RESUME, "running")):
                for _ in range(2):
                    assert (await rig.tell(verb, target)).kind is ReportKind.DONE
                    assert rig.node.get(rig.sandbox()).condition == condition
                    seen = await rig.driver.list()
                    assert seen[rig.sandbox()].condition.value == condition
            await rig.tell(Verb.SANDBOX_PAUSE, target)
            refused = await rig.tell(Verb.SANDBOX_EXEC, {**target, "cmd": ["true"]})
            assert refused.error.code == "sandbox.not-running"

    run(scenario())


def test_a_driver_that_cannot_pause_says_so(rig, run):
    async def scenario():
        async with rig.life():
            await rig.up()
            rig.driver.flags = ("exec",)
            report = await rig.tell(Verb.SANDBOX_PAUSE, {"sandbox_id": rig.sandbox()})
            assert (report.error.code, report.error.details["needs"]) == ("driver.unsupported", "pause")

    run(scenario())


def test_a_rollback_restores_the_disk_under_a_new_generation(rig, run):
    async def scenario():
        async with rig.life():
            target = {"sandbox_id": await rig.up()}

            async def shell(command):
                report = await rig.tell(Verb.SANDBOX_EXEC, {**target, "cmd": ["sh", "-c", command]})
                return base64.b64decode(report.body["stdout"]).decode()

            await shell("echo before > /note")
            taken = await rig.tell(Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})
            assert (taken.kind, taken.body["holds"], taken.body["versions"]["agent"]) == (ReportKind.DONE, ["disk"], "2")
            await shell("echo after > /note")
            back = await rig.tell(Verb.SANDBOX_ROLLBACK, {**target, "snapshot_id": SNAPSHOT, "generation": 1})
            assert (back.kind, back.body["generation"]) == (ReportKind.DONE, 1)
            assert await shell("cat /note") == "before\n"
            for generation in (0, 1):
                stale = await rig.tell(Verb.SANDBOX_ROLLBACK, {**target, "snapshot_id": SNAPSHOT, "generation": generation})
                assert (stale.error.code, stale.body) == ("sandbox.stale-generation", {})
            stale = await rig.tell(Verb.SANDBOX_PAUSE, {**target, "generation": 0})
            assert stale.error.code == "sandbox.stale-generation"
            assert not [r for r in rig.reports if r.verb == Observation.SANDBOX_EXITED], "the old machine's end was our own doing"

    run(scenario())


def test_a_rollback_to_nowhere_touches_nothing(rig, run):
    async def scenario():
        async with rig.life():
            await rig.up()
            report = await rig.tell(Verb.SANDBOX_ROLLBACK, {"sandbox_id": rig.sandbox(), "snapshot_id": SNAPSHOT, "generation": 1})
            assert (report.error.code, report.body) == ("snapshot.not-found", {})
            assert (await rig.driver.list())[rig.sandbox()].condition.value == "running"

    run(scenario())


def test_a_rollback_that_cannot_start_again_is_fatal_and_says_so(rig, run):
    async def scenario():
        async with rig.life():
            target = {"sandbox_id": await rig.up(), "snapshot_id": SNAPSHOT}
            await rig.tell(Verb.SANDBOX_SNAPSHOT, target)
            rig.knobs.lose_reply = 1
            report = await rig.tell(Verb.SANDBOX_ROLLBACK, {**target, "generation": 1})
            assert (report.kind, report.body) == (ReportKind.FAILED, {"fatal": True})
            assert await rig.driver.list() == {}
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox()})
            assert await rig.left() == {}

    run(scenario())


def test_a_sandbox_is_made_from_a_snapshot(rig, run):
    async def scenario():
        async with rig.life():
            target = {"sandbox_id": await rig.up()}
            await rig.tell(Verb.SANDBOX_EXEC, {**target, "cmd": ["sh", "-c", "echo kept > /note"]})
            await rig.tell(Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})
            assert (await rig.tell(Verb.SANDBOX_PROVISION, rig.provision("two", snapshot_id=SNAPSHOT))).kind is ReportKind.DONE
            report = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox("two"), "cmd": ["cat", "/note"]})
            assert base64.b64decode(report.body["stdout"]) == b"kept\n"

    run(scenario())


def test_a_probe_port_is_waited_for_and_its_absence_explained(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.ports = (8080,)
            report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision(probe_port=8080, ports=[8080, 9]))
            assert {port["port"]: port["status"] for port in report.body["ports"]} == {8080: "listening", 9: "declared"}
            rig.knobs.ports = (8080, 9090)
            report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision("two", probe_port=80))
            assert (report.error.code, report.error.details["listening"]) == ("sandbox.startup-failed", [8080, 9090])
            assert "it listens on 8080, 9090" in report.error.message
            assert set((await rig.left())["roots"]) == {rig.sandbox()}

    run(scenario())


def test_an_exit_beats_the_port(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.fail_after_s, rig.knobs.fail_code = 0.01, 3
            report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision(probe_port=80))
            assert (report.error.code, report.error.details["exit_code"]) == ("sandbox.startup-failed", 3)
            assert await rig.left() == {}

    run(scenario())


def test_an_exit_is_told_with_code_and_generation(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.fail_after_s, rig.knobs.fail_code = 0.02, 3
            await rig.up()
            told = await rig.eventually(lambda: next((r for r in rig.reports if r.verb == Observation.SANDBOX_EXITED), None))
            assert told.body == {"sandbox_id": rig.sandbox(), "generation": 0, "exit_code": 3, "reason": "exited"}
            assert (told.project, told.process, told.process_id) == ("default", "sandbox", rig.sandbox())
            destroyed = await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox()})
            assert destroyed.body["exit_code"] == 3

    run(scenario())


def test_what_arrives_too_late_is_not_begun_unless_it_clears_up(rig, run):
    async def scenario():
        async with rig.life():
            late = rig.order(Verb.SANDBOX_PROVISION, rig.provision(), deadline_s=1)
            await rig.up("two")
            destroy = rig.order(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox("two"), "grace_s": 0}, deadline_s=1)
            rig.now += timedelta(seconds=2)
            report = await rig.send(late)
            assert report.error.code == "order.deadline-exceeded"
            assert (await rig.send(destroy)).kind is ReportKind.DONE
            assert await rig.left() == {}

    run(scenario())


def test_a_program_that_was_refused_before_it_began_is_begun_when_its_order_comes_again(rig, run):
    """A command id has one answer for ever, but nothing was answered: it came too late, or there was no room to write it down."""

    async def scenario():
        async with rig.life():
            await rig.up()
            body = {"sandbox_id": rig.sandbox(), "cmd": ["sh", "-c", "echo x >> /tally; cat /tally"]}
            order = rig.order(Verb.SANDBOX_EXEC, body, deadline_s=1)
            for _ in range(2):
                rig.now += timedelta(seconds=2)
                late = await rig.send(order)
                assert (late.error.code, late.error.retryable, late.error.details) == ("order.deadline-exceeded", True, {"begun": False})
            again = order.model_copy(update={"deadline": rig.now + timedelta(seconds=60)})
            for _ in range(2):
                rig.now += timedelta(seconds=2)
                done = await rig.send(again)
                assert (done.kind, base64.b64decode(done.body["stdout"])) == (ReportKind.DONE, b"x\n")
            assert len({report.id for report in rig.ends_of(order)}) == 4, "the bus takes none of them for another"

    run(scenario())


def test_what_cannot_be_undone_is_swept_until_it_is_and_then_told(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.lose_reply = 1
            rig.leases.broken = True
            order = rig.order(Verb.SANDBOX_PROVISION, rig.provision())
            report = await rig.send(order)
            assert report.body["uncompensated"] == ["artifact", "root", "network"], "the root may be what the lease still serves"
            assert set(await rig.left()) == {"roots", "leases", "records"}
            for _ in range(5):
                rig.now += timedelta(minutes=1)
                await rig.sweep()
            assert set(await rig.left()) == {"roots", "leases", "records"}
            vain = await rig.eventually(lambda: [end for end in rig.ends_of(order) if end.body["undo"]][2:] and rig.ends_of(order)[1:])
            assert [end.body["undo"] for end in vain] == [1, 2, 4], "ever more rarely: each of these is kept for ever"
            assert {(end.error.details["step"], *end.body["uncompensated"]) for end in vain} == {("network", "network", "root", "logs")}
            rig.leases.broken = False
            await rig.sweep()
            assert await rig.left() == {}
            last = rig.ends_of(order)[-1]
            assert (last.kind, last.body["uncompensated"]) == (ReportKind.FAILED, [])
            assert last.id != report.id

    run(scenario())


def test_a_destroy_that_fails_is_told_swept_and_told_again(rig, run, monkeypatch):
    monkeypatch.setattr("agents.verbs.provision.DESTROY_PAUSES_S", (0.0,))

    async def scenario():
        async with rig.life():
            await rig.up()
            rig.leases.broken = True
            order = rig.order(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox()})
            assert (await rig.send(order)).kind is ReportKind.FAILED
            assert rig.sandbox() not in await rig.driver.list()
            rig.leases.broken = False
            await rig.sweep()
            assert rig.ends_of(order)[-1].kind is ReportKind.DONE
            assert await rig.left() == {}

    run(scenario())


def test_an_order_that_makes_no_sense_is_answered_and_terminated(rig, run):
    async def scenario():
        async with rig.life():
            order, ack = rig.order(Verb.SANDBOX_PROVISION, {"sandbox_id": "nonsense"}), NoAck()
            await rig.work.handle(order, ack)
            report = rig.ends_of(order)[0]
            assert report.error.code == "order.invalid"
            assert "order.invalid" in ack.reason

    run(scenario())
