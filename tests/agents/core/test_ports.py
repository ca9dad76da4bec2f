"""What a sandbox serves: waited for when it starts, watched for as long as it runs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.waiting import run as go

from agents.drivers.driver import Handle
from agents.host.ports import Listener
from agents.listening import Heard, diagnosis, hear, statuses
from agents.portwatch import SLOW_S, TELL_EVERY_S, PortWatch
from domain.nodes.orders import Observation, PortStatus, ReportKind, Verb


def told(rig) -> list[dict[int, str]]:
    """What was observed of ports, oldest first."""
    found = [report.body["ports"] for report in rig.reports if report.verb == Observation.SANDBOX_PORTS]
    return [{port["port"]: port["status"] for port in ports} for ports in found]


async def looked(rig, watch: PortWatch, at: float, *ports: int) -> list[dict[int, str]]:
    """A look at what listens on these ports, and everything told so far."""

    async def listening(_handle) -> frozenset[int]:
        return frozenset(ports)

    rig.driver.listening = listening
    rig.now += timedelta(seconds=1)
    await watch.look(at)
    await rig.eventually(lambda: not rig.node.memory.outbox)
    return told(rig)


def test_what_is_served_later_or_not_any_more_is_told_once(rig, run):
    async def scenario():
        async with rig.life() as node:
            await rig.up(ports=[80, 81])
            lines = []
            node.runtime_line = lambda _sandbox, text: lines.append(text)
            watch = PortWatch(node)
            assert await looked(rig, watch, 100) == [], "that nothing listens was said when it came up"
            assert await looked(rig, watch, 100.25, 80, 9) == [{80: "listening", 81: "declared"}]
            assert await looked(rig, watch, 100.5, 80, 9) == [{80: "listening", 81: "declared"}]
            assert (await looked(rig, watch, 100.25 + TELL_EVERY_S, 81))[-1] == {80: "closed", 81: "listening"}
            assert lines == ["port 80: listening", "port 80: closed", "port 81: listening"]

    run(scenario())


def test_however_often_ports_come_and_go_it_is_told_now_and_then_and_as_it_is_then(rig, run):
    async def scenario():
        async with rig.life() as node:
            await rig.up(ports=[80])
            watch = PortWatch(node)
            for step in range(40):
                await looked(rig, watch, 100 + step * 0.25, *([80] if step % 2 else []))
            assert len(told(rig)) <= 40 * 0.25 / TELL_EVERY_S + 1
            assert (await looked(rig, watch, 200, 80))[-1] == {80: "listening"}

    run(scenario())


def test_one_that_serves_all_it_declared_is_looked_at_less_often(rig, run):
    async def scenario():
        async with rig.life() as node:
            rig.knobs.ports = (80,)
            await rig.up(ports=[80])
            watch = PortWatch(node)
            assert await looked(rig, watch, 100, 80) == []
            assert await looked(rig, watch, 100 + SLOW_S - 0.1) == [], "nobody looked"
            assert await looked(rig, watch, 100 + SLOW_S) == [{80: "closed"}]

    run(scenario())


def test_the_next_agent_says_what_it_sees_first_and_watches_on(rig, run):
    async def scenario():
        async with rig.life():
            rig.knobs.ports = (80,)
            await rig.up(ports=[80])
        async with rig.life() as node:
            watch = PortWatch(node)
            assert await looked(rig, watch, 100, 80) == [{80: "listening"}]
            assert await looked(rig, watch, 102, 80) == [{80: "listening"}]
            await rig.tell(Verb.SANDBOX_PAUSE, {"sandbox_id": rig.sandbox()})
            assert await looked(rig, watch, 110) == [{80: "listening"}], "what stands still has not closed anything"
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox()})
            await watch.look(120)
            assert (watch._watches, node.served) == ({}, {})

    run(scenario())


def test_a_probe_port_is_taken_for_the_one_other_that_is_served(rig, run):
    """Once, and it is said; then it is watched on that one."""

    async def scenario():
        async with rig.life() as node:
            lines = []
            node.runtime_line = lambda _sandbox, text: lines.append(text)
            rig.knobs.ports = (9000,)
            report = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision(probe_port=80))
            assert report.kind is ReportKind.DONE
            assert report.body["ports"] == [{"port": 80, "address": "", "status": "listening", "bound": 9000}]
            assert "port 80 is served on 9000, and taken for that; let the program heed $PORT" in lines
        async with rig.life() as node:
            watch = PortWatch(node)
            assert await looked(rig, watch, 100, 9000) == [{80: "listening"}]
            assert await looked(rig, watch, 110) == [{80: "listening"}, {80: "closed"}]

    run(scenario())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("served", "hidden", "says"),
    [
        ((), (), ""),
        ((), (80,), "on the loopback interface only, let it bind to 0.0.0.0"),
        ((), (9000,), "let it bind to 0.0.0.0:80"),
        ((9000, 8000), (), "it listens on 8000, 9000; let it heed $PORT"),
        ((9000, 8000), (80,), "on the loopback interface only"),
    ],
)
def test_a_port_that_is_not_served_is_explained(served, hidden, says):
    found = diagnosis(Heard(frozenset(served), frozenset(hidden)), 80)
    assert says in found
    assert bool(says) == bool(found)


@pytest.mark.quick
def test_what_only_the_sandbox_itself_reaches_is_not_served_unless_there_is_no_other_way():
    class Driver:
        async def listening(self, _handle):
            return frozenset({80, 81})

        async def listeners(self, _handle):
            return frozenset({Listener(80), Listener(80, reachable=False), Listener(81, reachable=False)})

    handle = Handle("x", "sb-1", 0)
    assert go(hear(Driver(), handle, "100.64.0.2")) == Heard(frozenset({80}), frozenset({81}))
    assert go(hear(Driver(), handle, "")) == Heard(frozenset({80, 81}))


@pytest.mark.quick
def test_a_port_that_has_never_listened_is_not_closed():
    before = [PortStatus(port=1), PortStatus(port=2, status="listening"), PortStatus(port=3, bound=30), PortStatus(port=4, status="closed")]
    assert [port.status for port in statuses(before, {30, 4})] == ["declared", "closed", "listening", "listening"]
