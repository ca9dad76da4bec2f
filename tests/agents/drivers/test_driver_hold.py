"""Contract: a start that was made before anybody asked for it becomes a sandbox like any other, or nothing at all."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest
from support.benches import KINDS, Bench
from support.waiting import eventually, run

from agents.drivers.driver import CanHold, Condition, Exit, Handle, RuntimeFault
from agents.host import processes, reaper

pytestmark = pytest.mark.root

HOLDING = pytest.mark.parametrize("kind", [KINDS["bwrap"], KINDS["oci"]], indirect=True, ids=str)
GREETS = ("/bin/sh", "-c", "echo hello; exec sleep 100000")


async def _held(bench: Bench, *argv: str) -> None:
    await bench.driver.hold(bench.spec(*(argv or GREETS), name="waiting-1", hostname="nobody"))


async def _given(bench: Bench, *argv: str, **more: object) -> Handle | None:
    """As the agent does: what it has made is moved first."""
    logs = bench.directory / "logs"
    if (logs / "waiting-1").exists() and not (logs / "sb-1").exists():
        (logs / "waiting-1").rename(logs / "sb-1")
    spec = replace(bench.spec(*(argv or GREETS), name="sb-1", **more), hostname="box")
    given: Handle | None = await bench.driver.give("waiting-1", spec)
    return given


@HOLDING
def test_what_was_held_becomes_the_sandbox_in_all_that_it_is_asked_for(bench: Bench) -> None:
    async def scenario() -> None:
        assert isinstance(bench.driver, CanHold)
        assert bench.driver.holds
        await _held(bench)
        handle = await _given(bench)
        assert handle is not None
        assert (handle.sandbox_id, await bench.condition(handle)) == ("sb-1", Condition.RUNNING)
        assert await bench.said(handle, "hostname") == "box"
        await eventually(lambda: bench.log() == "hello\n")
        assert set(await bench.driver.list()) == {"sb-1"}
        assert (await bench.driver.stop(handle, grace_s=0.1)).code in (137, 143)
        await bench.driver.destroy("sb-1")
        assert await bench.driver.list() == {}

    run(scenario())


@HOLDING
def test_the_program_does_not_run_before_it_is_given_and_never_if_the_agent_has_died(bench: Bench) -> None:
    async def scenario() -> None:
        await _held(bench)
        await bench.again()
        assert {name: seen.condition for name, seen in (await bench.driver.list()).items()} == {"waiting-1": Condition.GONE}
        assert await _given(bench) is None
        assert await bench.driver.list() == {}
        assert bench.log() == ""

    run(scenario())


@HOLDING
def test_what_was_held_and_is_not_wanted_leaves_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        await _held(bench)
        await bench.driver.destroy("waiting-1")
        assert await bench.driver.list() == {}
        assert bench.log(name="waiting-1") == ""

    run(scenario())


@HOLDING
def test_what_died_while_it_was_held_is_not_given(bench: Bench) -> None:
    async def scenario() -> None:
        await _held(bench)
        held = bench.driver._held["waiting-1"]
        first = held[0] if isinstance(held, tuple) else held.state["first"]
        seen = processes.stat(first)
        assert seen is not None
        processes.send(first, signal.SIGKILL)
        await eventually(lambda: not processes.alive(first, seen.started))
        reaper.sweep()
        assert await _given(bench) is None
        assert await bench.driver.list() == {}
        assert await bench.condition(await bench.start()) is Condition.RUNNING

    run(scenario())


@HOLDING
def test_one_that_was_given_outlives_the_agent_and_its_exit_is_known(bench: Bench) -> None:
    async def scenario() -> None:
        program = ("/bin/sh", "-c", "while [ ! -e /srv/go ]; do sleep 0.02; done; exit 9")
        await _held(bench, *program)
        handle = await _given(bench, *program)
        assert handle is not None
        await bench.again()
        assert (await bench.driver.recover(handle)).condition is Condition.RUNNING
        await bench.said(handle, "touch /srv/go")
        assert await bench.driver.wait(handle) == Exit(9)

    run(scenario())


@HOLDING
def test_a_program_that_has_gone_since_does_not_pass_for_one_that_ran(bench: Bench) -> None:
    async def scenario() -> None:
        program = bench.root / "srv" / "program"
        program.write_text("#!/bin/sh\nexec sleep 100000\n")
        program.chmod(0o755)
        await _held(bench, "/srv/program")
        program.unlink()
        [outcome] = await asyncio.gather(_given(bench, "/srv/program"), return_exceptions=True)
        if isinstance(outcome, Handle):  # the runtime may be gone before execve fails
            assert (await bench.driver.wait(outcome)).code != 0
        else:
            assert isinstance(outcome, RuntimeFault)
            assert outcome.code == "sandbox.start-failed"
            assert await bench.driver.list() == {}

    run(scenario())


@HOLDING
def test_a_later_generation_is_given_in_place_of_the_one_that_runs(bench: Bench) -> None:
    async def scenario() -> None:
        before = await bench.start("/bin/sleep", "100000")
        await _held(bench)
        handle = await _given(bench, generation=1)
        assert handle is not None
        assert (await bench.condition(before), await bench.condition(handle)) == (Condition.GONE, Condition.RUNNING)
        assert set(await bench.driver.list()) == {"sb-1"}

    run(scenario())
