"""The simulator's knobs: time, latency and failures; and that it carries a fleet."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from support.waiting import run

from agents.drivers.driver import Condition, ExecRequest, Exit, Limits, RuntimeFault, Spec
from agents.drivers.sim import Knobs, SimDriver


class ManualClock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self._now + seconds, woken))
        await woken.wait()

    async def move(self, seconds: float) -> None:
        await self._settle()
        self._now += seconds
        for due, woken in self._sleepers:
            if due <= self._now:
                woken.set()
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def _spec(name: str = "sb-1", *argv: str, generation: int = 0) -> Spec:
    return Spec(name, generation, Path("/nonexistent"), argv or ("/bin/sleep", "1000000"), {}, Path("/nonexistent/logs"))


def test_things_take_the_time_that_they_are_told_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        driver = SimDriver(tmp_path, clock, Knobs(start_s=5, exec_s=2, destroy_s=1))
        start = asyncio.ensure_future(driver.start(_spec()))
        await clock.move(4.9)
        assert not start.done()
        await clock.move(0.2)
        handle = start.result()
        execute = asyncio.ensure_future(driver.exec(handle, ExecRequest(["/bin/sh", "-c", "sleep 3; echo done"])))
        await clock.move(4.9)
        assert not execute.done()
        await clock.move(0.2)
        assert execute.result().stdout == b"done\n"
        await driver.close()

    run(scenario())


def test_a_main_process_ends_when_its_time_has_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        driver = SimDriver(tmp_path, clock)
        handle = await driver.start(_spec("sb-1", "/bin/sh", "-c", "sleep 60; exit 4"))
        wait = asyncio.ensure_future(driver.wait(handle))
        await clock.move(59)
        assert not wait.done()
        await clock.move(2)
        assert wait.result() == Exit(4)
        await driver.close()

    run(scenario())


def test_time_stands_still_in_a_paused_sandbox(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        driver = SimDriver(tmp_path, clock, Knobs(fail_after_s=10, fail_code=3))
        handle = await driver.start(_spec())
        await clock.move(9)
        await driver.pause(handle)
        await clock.move(100)
        assert (await driver.inspect(handle)).condition is Condition.PAUSED
        await driver.resume(handle)
        await clock.move(0.5)
        assert (await driver.inspect(handle)).condition is Condition.RUNNING
        await clock.move(1)
        assert (await driver.inspect(handle)).exit == Exit(3)
        await driver.close()

    run(scenario())


def test_a_start_that_fails_has_done_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path, knobs=Knobs(fail_start=1))
        with pytest.raises(RuntimeFault) as refusal:
            await driver.start(_spec())
        assert refusal.value.retryable
        assert await driver.list() == {}
        await driver.start(_spec())
        assert set(await driver.list()) == {"sb-1"}
        await driver.close()

    run(scenario())


def test_a_lost_reply_has_done_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path, knobs=Knobs(lose_reply=2))
        for _ in range(2):
            with pytest.raises(RuntimeFault, match="not to know"):
                await driver.start(_spec())
            assert (await driver.list())["sb-1"].condition is Condition.RUNNING
        assert (await driver.inspect(await driver.start(_spec()))).condition is Condition.RUNNING
        await driver.close()

    run(scenario())


def test_a_start_that_hangs_can_be_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path, knobs=Knobs(hang_start=True))
        start = asyncio.ensure_future(driver.start(_spec()))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert await driver.list() == {}
        await driver.close()

    run(scenario())


def test_a_slow_main_process_is_killed_after_the_grace(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        driver = SimDriver(tmp_path, clock, Knobs(stop_s=30))
        handle = await driver.start(_spec())
        stop = asyncio.ensure_future(driver.stop(handle, grace_s=5))
        await clock.move(5.1)
        assert stop.result() == Exit(137, "killed")
        await driver.close()

    run(scenario())


def test_everything_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        first = SimDriver(tmp_path, clock, Knobs(ports=(80, 443)))
        one, two, three = [await first.start(_spec(f"sb-{n}", generation=n)) for n in (1, 2, 3)]
        await first.pause(one)
        ended = await first.stop(two, 1)
        await first.destroy("sb-3")
        await first.set_limits(one, Limits(3, 64, 5))
        await first.close()
        second = SimDriver(tmp_path, clock)
        assert (await second.recover(one)).condition is Condition.PAUSED
        assert (await second.recover(two)).exit == ended
        assert (await second.recover(three)).condition is Condition.GONE
        await second.resume(one)
        assert await second.listening(one) == {80, 443}
        await second.close()

    run(scenario())


def test_a_torn_last_line_costs_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = SimDriver(tmp_path)
        await first.start(_spec("sb-1"))
        await first.close()
        with (tmp_path / "sandboxes.jsonl").open("ab") as file:
            file.write(b'{"sandbox_id":"sb-2","gener')
        second = SimDriver(tmp_path)
        assert set(await second.list()) == {"sb-1"}
        await second.start(_spec("sb-3"))
        await second.close()
        third = SimDriver(tmp_path)
        assert set(await third.list()) == {"sb-1", "sb-3"}
        await third.close()

    run(scenario())


def test_history_is_forgotten_by_the_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path)
        for _ in range(3000):
            await driver.start(_spec())
            await driver.destroy("sb-1")
        await driver.close()
        assert (tmp_path / "sandboxes.jsonl").stat().st_size < 1_000_000

    run(scenario())


def test_a_fleet_of_fifty_thousand_is_carried(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path)
        began = time.process_time()
        for number in range(50_000):
            await driver.start(_spec(f"sb-{number}"))
        assert time.process_time() - began < 20
        assert len(await driver.list()) == 50_000
        handle = await driver.start(_spec("sb-49999"))
        assert (await driver.exec(handle, ExecRequest(["echo", "hi"]))).stdout == b"hi\n"
        await driver.close()
        again = SimDriver(tmp_path)
        assert len(await again.list()) == 50_000
        await again.close()

    run(scenario())


@pytest.mark.parametrize(
    ("script", "code", "out", "err"),
    [
        ("echo a; echo b", 0, "a\nb\n", ""),
        ("false || echo saved", 0, "saved\n", ""),
        ("false && echo never; echo after", 0, "after\n", ""),
        ("true || echo never; echo after", 0, "after\n", ""),
        ("false; true", 0, "", ""),
        ("false", 1, "", ""),
        ("exit 300", 44, "", ""),
        ("echo 'one  two' \"$WHO\"", 0, "one  two me\n", ""),
        ("echo -n bare", 0, "bare", ""),
        ("echo to >&2", 0, "", "to\n"),
        ("grep x", 127, "", "grep: not found\n"),
        ("cat /none || exit 9", 9, "", "cat: /none: No such file or directory\n"),
    ],
)
def test_the_tiny_shell_speaks_as_a_shell_does(tmp_path: Path, script: str, code: int, out: str, err: str) -> None:
    async def scenario() -> None:
        driver = SimDriver(tmp_path)
        done = await driver.exec(await driver.start(_spec()), ExecRequest(["sh", "-c", script], env={"WHO": "me"}))
        assert (done.code, done.stdout.decode(), done.stderr.decode()) == (code, out, err)
        await driver.close()

    run(scenario())
