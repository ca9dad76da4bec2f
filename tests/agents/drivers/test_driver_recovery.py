"""Contract: sandboxes outlive the agent that started them, and the next agent finds them, whatever moment the last one died at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.benches import ALL, PROCESS, REAL, SIM, Bench
from support.waiting import eventually, run

from agents.drivers.driver import Condition, Exit, Handle
from agents.host import processes

REPOSITORY = Path(__file__).parents[3]


@contextmanager
def _agent(bench: Bench, *argv: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Another agent process, over the bench's driver directory, killed with SIGKILL at the latest at the end."""
    command = [sys.executable, "-m", "support.starter", bench.kind.name, str(bench.directory / "driver")]
    command += [str(bench.place("sb-1")), str(bench.directory / "logs/sb-1"), *argv]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests:{os.environ.get('PYTHONPATH', '')}"} | env
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _start_and_die(bench: Bench, *argv: str) -> Handle:
    with _agent(bench, *argv) as agent:
        assert agent.stdout is not None
        return Handle(**json.loads(agent.stdout.readline()))


@ALL
def test_a_sandbox_outlives_its_agent_and_is_taken_up_again(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.driver.close()
        handle = _start_and_die(bench, "/bin/sleep", "100000")
        await bench.again()
        assert (await bench.driver.recover(handle)).condition is Condition.RUNNING
        assert set(await bench.driver.list()) == {"sb-1"}
        assert await bench.said(handle, "echo still here") == "still here"
        assert await bench.start("/bin/sleep", "100000") == handle
        ended = await bench.driver.stop(handle, grace_s=0.1)
        assert ended.code in (137, 143)

    run(scenario())


@REAL
def test_a_shell_lives_on_without_the_agent_that_gave_it_its_streams(bench: Bench) -> None:
    async def scenario() -> None:
        handle = _start_and_die(bench, "/bin/sh", "-c", "read line; echo never; sleep 100000")
        await bench.said(handle, "echo x > /proc/1/fd/1")
        assert (await bench.driver.recover(handle)).condition is Condition.RUNNING
        assert bench.log() in ("x\n", "")  # under bwrap process 1 is not the workload

    run(scenario())


@REAL
def test_what_a_main_process_says_without_an_agent_is_not_lost(bench: Bench) -> None:
    async def scenario() -> None:
        handle = _start_and_die(bench, "/bin/sh", "-c", "while [ ! -e /srv/go ]; do sleep 0.02; done; echo alone; echo bad >&2; exit 9")
        await bench.said(handle, "touch /srv/go")
        assert await bench.driver.wait(handle) == Exit(9)
        assert (bench.log("stdout"), bench.log("stderr")) == ("alone\n", "bad\n")

    run(scenario())


@REAL
def test_an_exit_that_happened_without_an_agent_is_told_to_the_next(bench: Bench) -> None:
    async def scenario() -> None:
        handle = _start_and_die(bench, "/bin/sh", "-c", "while [ ! -e /srv/go ]; do sleep 0.02; done; echo gone; exit 9")
        await bench.said(handle, "touch /srv/go")
        await eventually(lambda: bench.log() == "gone\n")
        await bench.again()

        async def seen() -> bool:
            return (await bench.driver.recover(handle)).condition is Condition.EXITED

        await eventually(seen)
        assert (await bench.driver.wait(handle)).code in (9, None)
        assert (await bench.driver.list())["sb-1"].condition is Condition.EXITED

    run(scenario())


@ALL
def test_a_sandbox_is_destroyed_by_name_alone(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.driver.close()
        _start_and_die(bench, "/bin/sleep", "100000")
        driver = await bench.again()
        await driver.destroy("sb-1")
        assert await driver.list() == {}

    run(scenario())


@REAL
def test_a_start_that_was_cut_short_leaves_nothing_once_destroyed(bench: Bench) -> None:
    async def scenario() -> None:
        with _agent(bench, "/bin/sleep", "100000", STARTER_DIES_BEFORE="handle") as agent:
            assert agent.wait(20) == -signal.SIGKILL
        await bench.again()
        assert {name: seen.condition for name, seen in (await bench.driver.list()).items()} == {"sb-1": Condition.GONE}
        await bench.driver.destroy("sb-1")
        assert await bench.driver.list() == {}

    run(scenario())


@REAL
def test_what_a_killed_agent_had_forked_and_not_executed_yet_is_found_too(bench: Bench) -> None:
    """It has the agent's environment still, so nothing is marked (no agent waits for ``execve``: the kernel lets the child go on)."""

    async def scenario() -> None:
        await bench.driver.close()
        with _agent(bench, "/bin/sleep", "100000", STARTER_DIES_BEFORE="program") as agent:
            assert agent.wait(20) == -signal.SIGKILL
        driver = await bench.again()
        await driver.destroy("sb-1")
        assert await driver.list() == {}
        assert not any(processes.holds(pid, str(bench.directory.resolve())) for pid in processes.pids() if pid != os.getpid())

    run(scenario())


@PROCESS
def test_a_start_that_is_on_record_and_was_held_back_when_its_agent_died_goes_on(bench: Bench) -> None:
    async def scenario() -> None:
        argv = ("/bin/sh", "-c", "echo hello; exec sleep 100000")
        with _agent(bench, *argv, STARTER_DIES_BEFORE="gate") as agent:
            assert agent.wait(20) == -signal.SIGKILL
        assert bench.log() == ""
        await bench.again()
        handle = await bench.start(*argv)
        await eventually(lambda: bench.log() == "hello\n")
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@REAL
def test_a_start_that_was_cut_short_can_be_asked_for_again(bench: Bench) -> None:
    async def scenario() -> None:
        with _agent(bench, "/bin/sleep", "100000", STARTER_DIES_BEFORE="handle") as agent:
            assert agent.wait(20) == -signal.SIGKILL
        handle = await (await bench.again()).start(bench.spec("/bin/sleep", "100000"))
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@ALL
def test_an_agent_killed_at_any_moment_of_a_start_leaves_what_the_next_can_clear(bench: Bench) -> None:
    async def scenario() -> None:
        for _ in range(3 if bench.kind is SIM else 6):
            with _agent(bench, "/bin/sleep", "100000") as agent:
                await eventually((bench.directory / "driver" / "sb-1").exists if bench.kind is not SIM else (lambda: True))
                agent.kill()
            await (await bench.again()).destroy("sb-1")
            assert await bench.driver.list() == {}

    run(scenario())
