"""``restart: always`` on a node: the same root under a new generation; and all of it, with a real agent and the log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support.agents import AgentProcess
from support.kept import kept, pids
from support.waiting import eventually, run

from domain.nodes.orders import Observation, ReportKind, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from handlers.control import Deadlines

ONCE = ("/bin/sh", "-c", "if [ -e /again ]; then exec sleep 1000; fi; touch /again; exit 3")


def test_what_has_ended_is_started_again_and_what_runs_is_not(rig) -> None:
    async def scenario() -> None:
        async with rig.life() as node:
            rig.knobs.fail_after_s = 0.02
            sandbox = await rig.up()
            await rig.eventually(lambda: [report for report in rig.reports if report.verb == Observation.SANDBOX_EXITED])
            rig.knobs.fail_after_s = None
            rig.knobs.fail_start = 1
            failed = await rig.tell(Verb.SANDBOX_RESTART, {"sandbox_id": sandbox, "generation": 1})
            assert (failed.kind, node.get(sandbox).condition) == (ReportKind.FAILED, "exited")
            up = await rig.tell(Verb.SANDBOX_RESTART, {"sandbox_id": sandbox, "generation": 2})
            assert (up.kind, up.body["generation"], node.get(sandbox).condition) == (ReportKind.DONE, 2, "running")
            assert sandbox in node.watches
            for generation, code in ((1, "sandbox.stale-generation"), (3, "sandbox.still-runs")):
                refused = await rig.tell(Verb.SANDBOX_RESTART, {"sandbox_id": sandbox, "generation": generation})
                assert refused.error.code == code
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox, "grace_s": 0})
            assert await rig.left() == {}

    run(scenario())


def test_a_restart_that_died_half_way_is_finished_by_the_next_agent(rig) -> None:
    async def scenario() -> None:
        async with rig.life(orderly=False) as node:
            rig.knobs.fail_after_s = 0.02
            sandbox = await rig.up()
            await rig.eventually(lambda: node.get(sandbox).condition == "exited")
            rig.knobs.fail_after_s, rig.knobs.hang_start = None, True
            order = rig.order(Verb.SANDBOX_RESTART, {"sandbox_id": sandbox, "generation": 1})
            task = asyncio.create_task(rig.send(order))
            await rig.eventually(lambda: "restart" in getattr(node.memory.orders.get(order.id), "touched", ()))
            task.cancel()
        rig.knobs.hang_start = False
        async with rig.life() as node:
            await rig.eventually(lambda: rig.ends_of(order))
            assert (rig.ends_of(order)[0].kind, node.get(sandbox).condition) == (ReportKind.DONE, "running")

    run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["process", pytest.param("oci", marks=pytest.mark.root)])
def test_a_program_that_crashes_comes_up_again_in_its_root_after_a_pause(server, built, tmp_path, driver: str) -> None:
    async def scenario() -> None:
        async with kept(server, tmp_path / "strand", *built, Deadlines(watchdog_s=0.2)) as place, AgentProcess(place, driver):
            await place.online()
            sandbox = await place.placed("crashes", ONCE, restart="always")

            async def is_crashed() -> Sandbox | None:
                found = await place.get(Sandbox, sandbox)
                return found if found.restarting is not None else None

            crashed = await eventually(is_crashed, 20)
            assert (crashed.state, crashed.exit.code, crashed.crashes, pids("crashes")) == (SandboxState.RUNNING, 3, 1, set())
            place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(seconds=10)
            await eventually(lambda: pids("crashes"), 20)

            async def is_up() -> Sandbox | None:
                found = await place.get(Sandbox, sandbox)
                return found if found.operation is None else None

            up = await eventually(is_up, 20)
            assert (up.state, up.generation, up.crashes) == (SandboxState.RUNNING, 1, 1)
            await place.do("sandbox.delete", {"sandbox_id": sandbox})
            await place.becomes(sandbox, SandboxState.DEAD)
            assert pids("crashes") == set()

    run(scenario())
