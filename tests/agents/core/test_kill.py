"""kill -9 of a real agent, on a real bus, at every step of a sandbox's creation: afterwards the sandbox runs, or nothing of it is left."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import remains
from support.agents import AgentProcess, Installation, installation
from support.privileges import ROOT
from support.unprivileged import NOBODY, folder, python
from support.waiting import eventually

from agents.drivers.crun import find
from agents.drivers.driver import Condition, Handle
from agents.drivers.process import ProcessDriver
from agents.journal import Journal
from agents.network.netns import choose_network
from agents.records import Memory
from agents.registry import DRIVERS
from agents.storage.all import all_roots
from domain.nodes.orders import Observation, Order, ReportKind, Verb

STEPS = ("artifact", "root", "network", "logs", "start", "ready", "report")

pytestmark = pytest.mark.slow

BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
CRUN = pytest.mark.skipif(find() is None, reason="crun is not installed")
REAL = pytest.mark.parametrize(
    "driver",
    [pytest.param("oci", marks=[pytest.mark.root, CRUN]), pytest.param("process", marks=[pytest.mark.root, BWRAP])],
)


async def left(place: Installation, driver: str) -> dict[str, set[str]]:
    """Everything on this host that belongs to sandboxes of a node whose agent does not run; empty when nothing does.

    What the product itself lists, and beside it what the host shows of the node by its directory's name and the names made from it.
    """
    own = place.own
    told = DRIVERS[driver](own / "drivers" / driver)
    logs = own / "logs"
    journal = Journal.open(own / "journal" / "journal", Memory())
    found = {
        "sandboxes": set(await told.list()),
        "states": {path.name for path in (own / "drivers" / driver).iterdir() if path.name.startswith("sb-")},
        "roots": set((await all_roots(own / "storage").list()).roots),
        "leases": set(await choose_network(own / "network").list()) if driver != "sim" else set(),
        "logs": {path.name for path in logs.iterdir()} if logs.is_dir() else set(),
        "records": set(journal.state.sandboxes),
        "unfinished": set(journal.state.orders),
        "host": set(remains.of_sandboxes(own)),
    }
    journal.close()
    await told.close()
    return {kind: names for kind, names in found.items() if names}


async def purged(place: Installation, driver: str) -> None:
    agent = AgentProcess(place, driver, "--purge")
    await agent.start()
    assert await agent.ended() == 0, agent.log()
    assert not place.own.exists()


@pytest.fixture
def installed_for_anybody(server, built, tmp_path):
    """As ``installed``, for an agent without rights: with the interpreter that runs it, None where these tests have no rights either."""

    @asynccontextmanager
    async def make():
        if not ROOT:
            async with installation(server, tmp_path / "strand", *built) as place:
                yield place, None
            return
        interpreter = python()
        with folder() as base:
            async with installation(server, base / "strand", *built) as place:
                for path in (base / "strand", *(base / "strand").iterdir()):
                    os.chown(path, NOBODY, NOBODY)
                yield place, interpreter

    return make


async def output(place: Installation, sandbox: str, *cmd: str) -> str:
    report = await place.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": list(cmd)})
    assert report.kind is ReportKind.DONE, report
    return base64.b64decode(report.body["stdout"]).decode()


async def deaths(place: Installation, driver: str, prefix: str = "", *, python: str | None = None, **recipe: Any) -> list[Order]:
    """Orders for sandboxes, one for each step: its agent dies by SIGKILL before the step's effect, and the next agent after it.

    In such an order that the agent that ends one order does not come to where it dies of the next. Not more than two deaths of one
    order: after three it is given up as poisoned.
    """
    orders: list[Order] = []
    for step in STEPS[:-1] if prefix else reversed(STEPS):
        for when in ("before", "after"):
            async with AgentProcess(place, driver, "--port-wait", "0.05", crash_at=f"{prefix}{step}:{when}", python=python) as agent:
                if when == "before":
                    await asyncio.gather(*(place.end_of(order) for order in orders[-1:]))
                    orders.append(await place.send(place.order(Verb.SANDBOX_PROVISION, place.provision(step, **recipe))))
                assert await agent.ended() == -9, (step, when, agent.log()[-3000:])
    return orders


async def survives(place: Installation, driver: str, python: str | None = None) -> None:
    """The story of the tests here: orders, two deaths each, a last agent, a sandbox for each order, its end."""
    orders = await deaths(place, driver, python=python)
    async with AgentProcess(place, driver, python=python) as last:
        for order in orders:
            report = await place.end_of(order)
            assert report.kind is ReportKind.DONE, (report, last.log()[-2000:])
            assert await output(place, order.process_id, "echo", "alive") == "alive\n"
            ends = [r for r in place.reports if r.order == order.id and r.kind is ReportKind.DONE]
            assert len(ends) == 1, "the bus stores a report once however often it is sent"
        assert remains.of_sandboxes(place.own) != [], "what is never seen would never be missed"
        for order in orders:
            destroyed = await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": order.process_id, "grace_s": 0})
            assert destroyed.kind is ReportKind.DONE
        await last.stop()
        assert await left(place, driver) == {}


@REAL
def test_a_real_sandbox_survives_its_agent(installed, run, driver):
    async def scenario():
        async with installed() as there:
            await survives(there, driver)
            await purged(there, driver)

    run(scenario())


@REAL
def test_a_sandbox_from_stock_survives_its_agent_too(installed, run, driver):
    """It dies after each part of what was held has become the sandbox's."""

    async def scenario():
        async with installed() as there:
            for part in ("root", "network", "start"):
                async with AgentProcess(there, driver, "--starts-waiting=1", crash_at=f"give-{part}:after") as agent:
                    orders = await until_one_is_given(there, driver, agent, part)
                async with AgentProcess(there, driver, "--starts-waiting=0") as next_one:
                    for order in orders:
                        assert (await there.end_of(order)).kind is ReportKind.DONE, next_one.log()[-2000:]
                    last = orders[-1].process_id
                    assert await output(there, last, "cat", "/proc/sys/kernel/hostname") == f"{last}\n"
                    for order in orders:
                        await there.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": order.process_id, "grace_s": 0})
                    await next_one.stop()
                    assert await left(there, driver) == {}

    run(scenario())


async def until_one_is_given(place: Installation, driver: str, agent: AgentProcess, name: str) -> list[Order]:
    """Order sandboxes of one kind until the agent dies of giving one from stock."""
    orders: list[Order] = []
    death = asyncio.ensure_future(agent.ended())
    while not death.done():
        assert len(orders) < 20, agent.log()[-3000:]
        orders.append(await place.send(place.order(Verb.SANDBOX_PROVISION, place.provision(f"{name}-{len(orders)}"))))
        end = asyncio.ensure_future(place.end_of(orders[-1]))
        await asyncio.wait({death, end}, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        await eventually(lambda: death.done() or [*(place.own / "drivers" / driver).glob("waiting-*/spec.json")])
    assert death.result() == -9, agent.log()[-3000:]
    return orders


@BWRAP
def test_a_sandbox_of_an_ordinary_user_survives_its_agent(installed_for_anybody, run):
    """With what such a user has: copies for roots, no network of the node's making, no control groups."""

    async def scenario():
        async with installed_for_anybody() as (there, python):
            await survives(there, "process", python)

    run(scenario())


async def leaves_nothing(place: Installation, driver: str, python: str | None = None) -> None:
    """Creations that fail at their last step, and die while each step is undone."""
    orders = await deaths(place, driver, "undo-", python=python, probe_port=1)
    async with AgentProcess(place, driver, "--port-wait", "0.05", python=python) as last:
        for order in orders:
            report = await place.end_of(order)
            assert (report.kind, report.error.code) == (ReportKind.FAILED, "sandbox.startup-failed")
            assert report.body["uncompensated"] == []
        await last.stop()
        assert await left(place, driver) == {}


@pytest.mark.root
@CRUN
def test_a_death_while_undoing_leaves_nothing(installed, run):
    async def scenario():
        async with installed() as there:
            await leaves_nothing(there, "oci")
            await purged(there, "oci")

    run(scenario())


@BWRAP
def test_a_death_while_undoing_leaves_nothing_of_an_ordinary_user(installed_for_anybody, run):
    async def scenario():
        async with installed_for_anybody() as (there, python):
            await leaves_nothing(there, "process", python)

    run(scenario())


@pytest.mark.parametrize("crash_at", ["start:before", "start:after"])
def test_a_destroy_that_arrives_after_the_death_fences_what_was_begun(installed, run, crash_at):
    async def scenario():
        async with installed() as there:
            provision = there.order(Verb.SANDBOX_PROVISION, there.provision("one"))
            async with AgentProcess(there, "sim", crash_at=crash_at) as first:
                await there.send(provision)
                assert await first.ended() == -9
            destroy = await there.send(there.order(Verb.SANDBOX_DESTROY, {"sandbox_id": provision.process_id, "grace_s": 0}))
            async with AgentProcess(there, "sim") as second:
                assert (await there.end_of(destroy)).kind is ReportKind.DONE
                await there.end_of(provision)
                await second.stop()
                assert await left(there, "sim") == {}

    run(scenario())


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_exec_is_not_run_twice(installed, run, place):
    async def scenario():
        async with installed() as there:
            body = there.provision("one")
            sandbox = body["sandbox_id"]
            order = there.order(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["sh", "-c", "echo x >> /tally"]})
            async with AgentProcess(there, "sim", crash_at=f"exec:{place}") as first:
                await there.tell(Verb.SANDBOX_PROVISION, body)
                await there.send(order)
                assert await first.ended() == -9
            async with AgentProcess(there, "sim"):
                report = await there.end_of(order)
                assert (report.kind, report.error.code) == (ReportKind.FAILED, "sandbox.exec-interrupted")
                tally = await there.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["cat", "/tally"]})
                assert base64.b64decode(tally.body.get("stdout", "")) == (b"" if place == "before" else b"x\n")

    run(scenario())


@pytest.mark.root
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_running_process_keeps_its_pid_over_a_kill_and_a_stop(installed, run):
    """And its log goes on, its exit is told, and a snapshot that died leaves it thawed."""

    async def scenario():
        async with installed() as there:
            script = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 7"
            body = there.provision("one", cmd=["/bin/sh", "-c", script])
            sandbox, snapshot = body["sandbox_id"], "snap-" + "b" * 24
            async with AgentProcess(there, "process", crash_at="freeze:after") as first:
                await there.tell(Verb.SANDBOX_PROVISION, body)
                order = await there.send(there.order(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": sandbox, "snapshot_id": snapshot}))
                assert await first.ended() == -9
            pid = await main_pid(there, sandbox)
            async with AgentProcess(there, "process") as second:
                assert (await there.end_of(order)).kind is ReportKind.DONE
                assert await output(there, sandbox, "echo", "thawed") == "thawed\n"
                assert await main_pid(there, sandbox) == pid
                await second.stop()
                assert second.process.returncode == 0
            assert await main_pid(there, sandbox) == pid, "an orderly end leaves it running too"
            async with AgentProcess(there, "process") as third:
                await output(there, sandbox, "touch", "/end")
                told = await there.said(lambda report: report.verb == Observation.SANDBOX_EXITED)
                assert (told.body["exit_code"], told.body["reason"]) == (7, "exited")
                await there.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox})
                await there.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": snapshot})
                await third.stop()
                assert await left(there, "process") == {}
            await purged(there, "process")

    run(scenario())


async def main_pid(place: Installation, sandbox: str) -> int:
    """The host's number for the sandbox's main process, which must be running."""
    journal = Journal.open(place.own / "journal" / "journal", Memory())
    handle = journal.state.sandboxes[sandbox].handle
    journal.close()
    driver = ProcessDriver(place.own / "drivers" / "process")
    seen = await driver.inspect(Handle(**handle))
    await driver.close()
    assert seen.condition in {Condition.RUNNING, Condition.PAUSED}
    return seen.pid


def test_a_second_agent_does_not_work_in_the_same_directory(installed, run):
    async def scenario():
        async with installed() as there, AgentProcess(there, "sim"):
            await there.said(lambda report: report.verb == Observation.NODE_HELLO)
            second = AgentProcess(there, "sim")
            await second.start()
            assert await second.ended() == 73

    run(scenario())


def test_an_agent_works_through_a_bus_that_comes_late_and_goes(installed, server, run):
    async def scenario():
        async with installed() as there:
            await there.nc.flush()
            server.kill()
            async with AgentProcess(there, "sim") as agent:
                await eventually(lambda: "uplink.waiting" in agent.log())
                server.start()
                await there.said(lambda report: report.verb == Observation.NODE_HELLO)
                body = there.provision("one", cmd=["sleep", "1.0"])
                await there.tell(Verb.SANDBOX_PROVISION, body)
                server.kill()
                await eventually(lambda: "connection" in agent.log() or "report.again" in agent.log(), 20)
                server.start()
                told = await there.said(lambda report: report.verb == Observation.SANDBOX_EXITED)
                assert told.body["sandbox_id"] == body["sandbox_id"]

    run(scenario())


def test_the_versions_of_a_node_are_read_again_when_asked(installed, run):
    async def scenario():
        async with installed() as there, AgentProcess(there, "sim"):
            hello = await there.said(lambda report: report.verb == Observation.NODE_HELLO)
            assert hello.body["versions"]["guest_image"] == "1"
            (there.own / "guest-image-version").write_text("2\n")
            report = await there.tell(Verb.NODE_INSPECT, {}, process="node", process_id="n1", project="system")
            assert report.body["versions"]["guest_image"] == "2"

    run(scenario())
