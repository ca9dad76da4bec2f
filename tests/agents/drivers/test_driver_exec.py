"""Contract: one more process inside a sandbox."""

from __future__ import annotations

import asyncio

import pytest
from support.benches import ALL, PROCESS, REAL, Bench
from support.waiting import eventually, run

from agents.drivers.driver import Condition, ExecRequest, RuntimeFault


@ALL
def test_stdout_stderr_and_exit_code_come_apart(bench: Bench) -> None:
    async def scenario() -> None:
        done = await bench.sh(await bench.start(), "echo out; echo err >&2; exit 3")
        assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
        assert (done.truncated, done.timed_out) == (False, False)

    run(scenario())


@ALL
def test_input_is_given_and_ends(bench: Bench) -> None:
    async def scenario() -> None:
        data = bytes(range(256)) * 2000
        done = await bench.driver.exec(await bench.start(), ExecRequest(["cat"], stdin=data))
        assert (done.code, done.stdout) == (0, data)

    run(scenario())


@ALL
def test_input_that_nobody_reads_is_no_error(bench: Bench) -> None:
    async def scenario() -> None:
        done = await bench.driver.exec(await bench.start(), ExecRequest(["true"], stdin=b"x" * 500_000))
        assert done.code == 0

    run(scenario())


@ALL
def test_the_environment_is_the_sandboxes_own_with_additions(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start(env={"A": "1", "B": "2"})
        assert await bench.said(handle, "echo $A $B $C", env={"B": "two", "C": "a b"}) == "1 two a b"
        path = await bench.said(handle, "echo $PATH")
        assert path == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    run(scenario())


@REAL
def test_no_variable_of_a_sandbox_reaches_a_program_of_the_host(bench: Bench) -> None:
    """The host's loader would answer on stderr; the sandbox's programs are static and have none."""

    async def scenario() -> None:
        handle = await bench.start(env={"LD_DEBUG": "libs"})
        done = await bench.sh(handle, "echo $LD_DEBUG $LD_PRELOAD", env={"LD_PRELOAD": "/srv/evil.so"})
        assert (done.code, done.stdout, done.stderr) == (0, b"libs /srv/evil.so\n", b"")
        assert bench.log("stderr") == ""

    run(scenario())


@ALL
def test_the_directory_is_the_sandboxes_unless_another_is_asked_for(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start(cwd="/srv")
        assert await bench.said(handle, "pwd") == "/srv"
        assert await bench.said(handle, "pwd", cwd="/srv/deep") == "/srv/deep"
        assert (await bench.sh(handle, "true", cwd="/not/there")).code == 126

    run(scenario())


@REAL
def test_a_directory_that_is_a_symlink_is_followed_inside(bench: Bench) -> None:
    (bench.root / "srv/out").symlink_to("/srv/deep")

    async def scenario() -> None:
        assert await bench.said(await bench.start(), "readlink /proc/self/cwd", cwd="/srv/out") == "/srv/deep"

    run(scenario())


@ALL
def test_a_program_that_is_not_there_is_127(bench: Bench) -> None:
    async def scenario() -> None:
        done = await bench.driver.exec(await bench.start(), ExecRequest(["nothing-of-that-name"]))
        assert done.code == 127
        assert b"not found" in done.stderr

    run(scenario())


@REAL
def test_a_program_that_cannot_be_executed_is_126(bench: Bench) -> None:
    (bench.root / "bin/text").write_text("no program")

    async def scenario() -> None:
        assert (await bench.driver.exec(await bench.start(), ExecRequest(["/bin/text"]))).code == 126

    run(scenario())


@REAL
def test_a_process_that_dies_of_a_signal_is_128_and_the_signal(bench: Bench) -> None:
    async def scenario() -> None:
        assert (await bench.sh(await bench.start(), "kill -9 $$")).code == 137

    run(scenario())


@ALL
def test_output_beyond_the_limit_is_dropped_and_told(bench: Bench) -> None:
    async def scenario() -> None:
        done = await bench.sh(await bench.start(), "echo 0123456789; echo abc >&2", max_output=4)
        assert (done.stdout, done.stderr, done.truncated) == (b"0123", b"abc\n", True)

    run(scenario())


@REAL
def test_a_flood_of_output_neither_blocks_nor_fills_the_memory(bench: Bench) -> None:
    async def scenario() -> None:
        done = await bench.sh(await bench.start(), "head -c 30000000 /dev/zero", max_output=1000)
        assert (done.code, len(done.stdout), done.truncated) == (0, 1000, True)

    run(scenario())


@ALL
def test_a_process_that_takes_too_long_is_killed(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        done = await bench.sh(handle, "echo before; sleep 1000", timeout_s=1)
        assert (done.timed_out, done.code, done.stdout) == (True, 137, b"before\n")
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@REAL
def test_time_out_kills_everything_that_was_started(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        tree = "sleep 5001 & setsid sleep 5002 & (setsid sh -c 'sleep 5003 & sleep 5004' &) ; env -i sleep 5005 & sleep 5006"
        done = await bench.sh(handle, tree, timeout_s=0.5)
        assert done.timed_out
        assert "sleep 500" not in await bench.said(handle, "ps")
        assert "sleep 100000" in await bench.said(handle, "ps")

    run(scenario())


@REAL
def test_a_cancelled_exec_kills_what_it_had_started(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        task = asyncio.ensure_future(bench.sh(handle, "touch /tmp/there; sleep 7001"))

        async def there() -> bool:
            return (await bench.sh(handle, "test -e /tmp/there")).code == 0

        await eventually(there)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "sleep 7001" not in await bench.said(handle, "ps")

    run(scenario())


@REAL
def test_a_background_process_does_not_delay_the_answer_and_lives_on(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        done = await bench.sh(handle, "sleep 8001 & echo started", timeout_s=20)
        assert (done.code, done.stdout, done.timed_out) == (0, b"started\n", False)
        assert "sleep 8001" in await bench.said(handle, "ps")

    run(scenario())


@REAL
def test_nothing_of_the_host_is_open_in_an_executed_process(bench: Bench) -> None:
    async def scenario() -> None:
        assert (await bench.said(await bench.start(), "ls /proc/self/fd")).split() == ["0", "1", "2", "3"]

    run(scenario())


@ALL
def test_many_at_once_in_one_sandbox_do_not_mix(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        said = await asyncio.gather(*(bench.said(handle, f"echo {n}; cat", stdin=b"in%d" % n) for n in range(8)))
        assert said == [f"{n}\nin{n}" for n in range(8)]

    run(scenario())


@ALL
def test_the_user_is_the_sandboxes(bench: Bench) -> None:
    async def scenario() -> None:
        assert await bench.said(await bench.start(user="1000:100"), "id -u") == "1000"

    run(scenario())


@ALL
def test_another_user_is_honoured_or_refused_never_ignored(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        if "users" in bench.driver.flags:
            assert await bench.said(handle, "id -u", user="app") == "1000"
            assert await bench.said(handle, "id -u", user="42") == "42"
        else:
            with pytest.raises(RuntimeFault) as refusal:
                await bench.sh(handle, "id -u", user="app")
            assert refusal.value.code == "exec.user-unsupported"

    run(scenario())


@PROCESS
def test_root_files_of_the_sandbox_can_be_written(bench: Bench) -> None:
    async def scenario() -> None:
        await bench.said(await bench.start(), "echo hello > /etc/made; chmod 600 /etc/made")
        assert (bench.root / "etc/made").read_text() == "hello\n"

    run(scenario())


@ALL
def test_what_a_sandbox_writes_is_in_its_root(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.said(handle, "echo one > /srv/file")
        await bench.said(handle, "echo two >> /srv/file")
        assert bench.kept("srv/file") in (b"one\ntwo\n", None)
        assert await bench.said(handle, "cat /srv/file") == "one\ntwo"

    run(scenario())


@ALL
def test_a_symlink_in_a_root_does_not_lead_to_the_host(bench: Bench) -> None:
    secret = bench.directory / "secret"
    secret.write_text("of the host")
    (bench.root / "srv/link").symlink_to(secret)

    async def scenario() -> None:
        handle = await bench.start()
        done = await bench.driver.exec(handle, ExecRequest(["cat", "/srv/link"]))
        assert done.code == 1
        await bench.sh(handle, "echo gone > /srv/link")
        assert secret.read_text() == "of the host"

    run(scenario())


@ALL
def test_there_is_no_exec_where_nothing_runs(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.destroy("sb-1")
        with pytest.raises(RuntimeFault) as refusal:
            await bench.sh(handle, "true")
        assert refusal.value.code == "sandbox.not-running"

    run(scenario())
