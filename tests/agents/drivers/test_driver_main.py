"""Contract: the life of a main process, from start to end, and what is seen of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from support.benches import ALL, PROCESS, REAL, Bench
from support.waiting import eventually, run

from agents.drivers.driver import Condition, Exit, Handle, RuntimeFault


@ALL
def test_a_driver_works_on_this_host_and_says_what_it_is(bench: Bench) -> None:
    async def scenario() -> None:
        assert await bench.driver.check() == []
        assert await bench.driver.version() != ""
        assert list(bench.driver.flags) == sorted(bench.driver.flags)
        assert "exec" in bench.driver.flags

    run(scenario())


@ALL
def test_a_started_sandbox_runs(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        assert (handle.sandbox_id, handle.generation, handle.driver) == ("sb-1", 0, bench.driver.name)
        seen = await bench.driver.inspect(handle)
        assert seen.condition is Condition.RUNNING
        assert seen.exit is None
        assert (seen.pid is not None) == bench.kind.real

    run(scenario())


@ALL
def test_a_shell_without_input_lives_as_long_as_its_sandbox(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh")
        assert await bench.said(handle, "echo here") == "here"
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@ALL
def test_the_exit_code_of_the_main_process_is_observed(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "exit 7")
        assert await bench.driver.wait(handle) == Exit(7)
        seen = await bench.driver.inspect(handle)
        assert (seen.condition, seen.exit) == (Condition.EXITED, Exit(7))
        with pytest.raises(RuntimeFault, match="does not run"):
            await bench.sh(handle, "true")

    run(scenario())


@REAL
def test_a_main_process_that_dies_of_a_signal_says_so(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        os.kill((await bench.driver.inspect(handle)).pid, signal.SIGKILL)
        assert await bench.driver.wait(handle) == Exit(128 + signal.SIGKILL)

    run(scenario())


@REAL
def test_what_the_main_process_leaves_behind_ends_with_it(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "setsid sleep 100000 & while [ ! -e /go ]; do sleep 0.02; done")
        alive = bench.kind.alive((await bench.driver.inspect(handle)).pid)
        await bench.said(handle, "touch /go")
        assert await bench.driver.wait(handle) == Exit(0)

        async def alone() -> bool:
            return not alive()

        await eventually(alone)

    run(scenario())


@ALL
def test_stdout_and_stderr_are_two_files_that_are_only_added_to(bench: Bench) -> None:
    async def scenario() -> None:
        script = "echo out; echo err >&2"
        await bench.driver.wait(await bench.start("/bin/sh", "-c", script))
        await bench.driver.wait(await bench.start("/bin/sh", "-c", script, generation=1))
        assert bench.log("stdout") == "out\nout\n"
        assert bench.log("stderr") == "err\nerr\n"

    run(scenario())


@ALL
def test_logs_are_followed_to_their_end(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "echo one; echo two >&2; echo three")
        seen = {"stdout": b"", "stderr": b""}
        async for stream, data in bench.driver.follow(handle):
            seen[stream] += data
        assert seen == {"stdout": b"one\nthree\n", "stderr": b"two\n"}

    run(scenario())


@REAL
def test_nothing_of_the_host_is_open_in_a_main_process(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.driver.wait(await bench.start("/bin/sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"))
        assert bench.log() == "0 1 2 3 "  # 3 is the directory that ls reads

    run(scenario())


@REAL
def test_a_main_process_sees_its_own_world(bench: Bench) -> None:
    async def scenario() -> None:
        script = "pwd; hostname; echo $COLOUR; echo $HOME; id -u; id -g; ls -d /proc/1 /dev/null; ls /"
        spec = {"env": {"COLOUR": "blue"}, "cwd": "/srv/deep", "user": "app", "hostname": "box"}
        assert (await bench.driver.wait(await bench.start("/bin/sh", "-c", script, **spec))).code == 0
        cwd, host, colour, home, uid, gid, null, first, *top = bench.log().split()
        assert (cwd, host, colour, home, uid, gid) == ("/srv/deep", "box", "blue", "/srv", "1000", "100")
        assert (null, first) == ("/dev/null", "/proc/1")
        assert set(top) <= {"bin", "dev", "etc", "lost+found", "proc", "root", "srv", "sys", "tmp"}

    run(scenario())


@PROCESS
def test_a_main_process_has_no_capabilities(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.driver.wait(await bench.start("/bin/sh", "-c", "grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status"))
        assert [line.split()[1].lstrip("0") for line in bench.log().splitlines()] == ["", "", "", "1"]

    run(scenario())


@ALL
@pytest.mark.parametrize(
    ("argv", "code"),
    [(["nothing-of-that-name"], "sandbox.no-such-program"), (["/bin/nothing"], "sandbox.no-such-program")],
    ids=["name", "path"],
)
def test_a_program_that_is_not_there_is_refused_and_leaves_nothing(bench: Bench, argv: list[str], code: str) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refusal:
            await bench.start(*argv)
        assert refusal.value.code == code
        assert await bench.driver.list() == {}

    run(scenario())


@REAL
def test_a_program_that_cannot_be_executed_does_not_pass_for_one_that_ran(bench: Bench) -> None:
    (bench.root / "bin/broken").write_text("#!/no/such/interpreter\n")
    (bench.root / "bin/broken").chmod(0o755)

    async def scenario() -> None:
        outcome = await asyncio.gather(bench.start("broken"), return_exceptions=True)
        if isinstance(outcome[0], Handle):  # the runtime may be gone before execve fails
            assert (await bench.driver.wait(outcome[0])).code != 0
        else:
            assert isinstance(outcome[0], RuntimeFault)
            assert outcome[0].code == "sandbox.start-failed"

    run(scenario())


@ALL
def test_an_unknown_user_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refusal:
            await bench.start(user="nobody-here")
        assert refusal.value.code == "user.unknown"

    run(scenario())


@ALL
def test_an_id_that_is_a_path_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeFault) as refusal:
            await bench.start(name="../sb-1")
        assert refusal.value.code == "sandbox.invalid-id"
        with pytest.raises(RuntimeFault):
            await bench.driver.destroy("..")

    run(scenario())


@ALL
def test_starting_what_runs_already_adopts_it(bench: Bench) -> None:
    async def scenario() -> None:
        first = await bench.start(generation=3)
        assert await bench.start(generation=3) == first
        assert await bench.condition(first) is Condition.RUNNING

    run(scenario())


@ALL
def test_a_later_generation_replaces_an_earlier_one_and_never_the_other_way(bench: Bench) -> None:
    async def scenario() -> None:
        old = await bench.start(generation=1)
        new = await bench.start(generation=2)
        assert await bench.condition(old) is Condition.GONE
        assert await bench.condition(new) is Condition.RUNNING
        with pytest.raises(RuntimeFault) as refusal:
            await bench.start(generation=1)
        assert refusal.value.code == "sandbox.stale-generation"
        assert await bench.condition(new) is Condition.RUNNING

    run(scenario())


@ALL
def test_several_start_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        names = [f"sb-{n}" for n in range(6)]
        handles = await asyncio.gather(*(bench.start(name=name) for name in names))
        assert {name: seen.condition for name, seen in (await bench.driver.list()).items()} == dict.fromkeys(names, Condition.RUNNING)
        await asyncio.gather(*(bench.driver.destroy(handle.sandbox_id) for handle in handles))
        assert await bench.driver.list() == {}

    run(scenario())


@ALL
def test_a_driver_lists_its_own_sandboxes_only(bench: Bench) -> None:
    async def scenario() -> None:
        other = bench.kind.make(bench.directory / "another agent's")
        handle = await bench.start()
        assert set(await bench.driver.list()) == {"sb-1"}
        assert await other.list() == {}
        await other.destroy("sb-1")
        assert await bench.condition(handle) is Condition.RUNNING
        await other.close()

    run(scenario())
