"""Contract: pausing, stopping, destroying, limiting, measuring."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support import bounds
from support.benches import ALL, BOUNDING, CONTAINER, KERNEL, PROCESS, REAL, SIM, Bench
from support.inside import inside, listen
from support.waiting import eventually, run

from agents.drivers.driver import (
    CanLimitLive,
    CanMeasure,
    CanPause,
    CanSample,
    CanSnapshot,
    CanWatchPorts,
    Condition,
    Exit,
    HasFiles,
    Limits,
    RuntimeFault,
)
from agents.drivers.inside import IDENTITY_PATH
from agents.host import cgroups
from agents.host.ports import Listener, _by_proc

CAPABILITIES = {
    "pause": CanPause,
    "live-limits": CanLimitLive,
    "usage": CanMeasure,
    "ports": CanWatchPorts,
    "memory-snapshot": CanSnapshot,
    "files": HasFiles,
}
SYS_RESOURCE = 24
TOLD = "one444\n\nidentity-token"
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"


@ALL
def test_capabilities_and_flags_say_the_same(bench: Bench) -> None:
    for flag, protocol in CAPABILITIES.items():
        assert isinstance(bench.driver, protocol) == (flag in bench.driver.flags), flag
    assert isinstance(bench.driver, CanSample) == isinstance(bench.driver, CanMeasure)


@ALL
def test_a_paused_sandbox_says_so_and_executes_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.pause(handle)
        await bench.driver.pause(handle)
        assert await bench.condition(handle) is Condition.PAUSED
        with pytest.raises(RuntimeFault) as refusal:
            await bench.sh(handle, "true")
        assert refusal.value.code == "sandbox.paused"
        assert (await (await bench.again()).recover(handle)).condition is Condition.PAUSED
        await bench.driver.resume(handle)
        await bench.driver.resume(handle)
        assert await bench.condition(handle) is Condition.RUNNING
        assert await bench.said(handle, "echo on") == "on"

    run(scenario())


@REAL
def test_nothing_moves_in_a_paused_sandbox(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", COUNT)

        def count(name: str = "sb-1") -> int:
            return len(bench.log(name=name).splitlines())

        await eventually(lambda: count() > 3)
        await bench.driver.pause(handle)
        stood = count()
        clock = bench.kind.make(bench.directory / "clock")  # another sandbox, that counts on meanwhile
        ticking = await clock.start(bench.spec("/bin/sh", "-c", COUNT, name="sb-2"))
        await eventually(lambda: count("sb-2") > 20)
        assert count() == stood
        await bench.driver.resume(handle)
        await eventually(lambda: count() > stood)
        await clock.destroy(ticking.sandbox_id)
        await clock.close()

    run(scenario())


@REAL
def test_a_main_process_may_end_in_its_own_way_when_asked(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done")
        await eventually(lambda: bench.log() == "ready\n")
        assert await bench.driver.stop(handle, grace_s=20) == Exit(5)
        assert await bench.driver.stop(handle, grace_s=20) == Exit(5)
        assert await bench.driver.wait(handle) == Exit(5)
        assert await bench.condition(handle) is Condition.EXITED

    run(scenario())


@REAL
def test_one_that_will_not_end_is_killed_after_the_grace(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done")
        await eventually(lambda: bench.log() == "ready\n")
        assert await bench.driver.stop(handle, grace_s=0.2) == Exit(137, "killed")
        assert await bench.condition(handle) is Condition.EXITED

    run(scenario())


@ALL
def test_a_stopped_sandbox_stays_stopped(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        ended = await bench.driver.stop(handle, grace_s=0.1)
        assert ended.code in (137, 143)
        assert await bench.driver.stop(handle, grace_s=0.1) == ended
        assert (await (await bench.again()).recover(handle)).exit == ended
        assert await bench.start() == handle
        assert await bench.condition(handle) is Condition.EXITED

    run(scenario())


@ALL
def test_a_paused_sandbox_can_be_stopped_and_destroyed(bench: Bench) -> None:
    async def scenario() -> None:
        first, second = await bench.start(name="sb-1"), await bench.start(name="sb-2")
        await bench.driver.pause(first)
        await bench.driver.pause(second)
        assert (await bench.driver.stop(first, grace_s=0.1)).code in (137, 143)
        await bench.driver.destroy("sb-2")
        assert await bench.condition(second) is Condition.GONE

    run(scenario())


@ALL
def test_destroying_is_for_ever_and_twice_is_fine(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.destroy("sb-1")
        await bench.driver.destroy("sb-1")
        await bench.driver.destroy("sb-never-heard-of")
        assert await bench.condition(handle) is Condition.GONE
        assert (await bench.driver.recover(handle)).condition is Condition.GONE
        assert await bench.driver.wait(handle) == Exit(None, "lost")
        assert await bench.driver.list() == {}

    run(scenario())


@REAL
def test_a_sandbox_full_of_forking_processes_is_destroyed(bench: Bench) -> None:
    async def scenario() -> None:
        script = "for i in 1 2 3 4 5 6; do (while :; do sleep 0.01 & wait $!; done) & done; echo ready; wait"
        handle = await bench.start("/bin/sh", "-c", script)
        await eventually(lambda: bench.log() == "ready\n")
        await bench.driver.destroy("sb-1")
        assert await bench.condition(handle) is Condition.GONE

    run(scenario())


@ALL
def test_usage_is_measured(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "while :; do :; done") if bench.kind is not SIM else await bench.start()

        async def used() -> bool:
            usage = await bench.driver.usage(handle)
            assert set(usage) == {"cpu_s", "memory_bytes", "pids"}
            return bool(usage["cpu_s"] > 0 and usage["memory_bytes"] > 0 and usage["pids"] >= 1)

        def sampled() -> bool:
            seen = bench.driver.sample([handle]).get("sb-1", {}).get("main")
            return seen is not None and seen.cpu_us > 0 and seen.memory > 0 and seen.pids >= 1

        await eventually(used)
        await eventually(sampled)
        await bench.driver.destroy("sb-1")
        assert bench.driver.sample([handle]) == {}, "what has gone is left out"

    run(scenario())


@KERNEL
def test_a_token_is_inside_for_everybody_and_replaced_as_a_whole(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.give_identity(handle, "one")
        assert await bench.said(handle, f"cat {IDENTITY_PATH}; stat -c %a {IDENTITY_PATH}; echo; ls -A /dev/strandline") == TOLD
        await bench.driver.pause(handle)
        await bench.driver.give_identity(handle, "another")
        await bench.driver.resume(handle)
        assert await bench.said(handle, f"cat {IDENTITY_PATH}") == "another"
        assert not (bench.root / "dev" / "strandline").exists(), "it is on no disk"
        await bench.driver.destroy("sb-1")
        with pytest.raises(RuntimeFault) as fault:
            await bench.driver.give_identity(handle, "late")
        assert fault.value.code == "sandbox.not-running"

    run(scenario())


@CONTAINER
def test_a_link_in_the_way_of_a_token_leads_nowhere(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.sh(handle, "ln -s /tmp /dev/strandline")
        with pytest.raises(RuntimeFault) as fault:
            await bench.driver.give_identity(handle, "secret")
        assert fault.value.code == "identity.not-given"
        assert await bench.said(handle, "ls -A /tmp") == ""

    run(scenario())


@REAL
def test_a_listening_port_is_seen(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("nc", "-l", "-p", "8080")

        async def seen() -> bool:
            return bool(await bench.driver.listening(handle) == {8080})

        await eventually(seen)
        with socket.socket() as outside:
            outside.bind(("127.0.0.1", 0))
            outside.listen()
            assert await bench.driver.listening(handle) == {8080}

    run(scenario())


@pytest.mark.root
@PROCESS
def test_a_port_on_loopback_alone_is_told_from_one_that_can_be_reached(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("sleep", "1000")
        pid = (await bench.driver.inspect(handle)).pid or 0
        netns = Path(f"/proc/{pid}/ns/net")
        with inside(netns, lambda: listen("127.0.0.1", 8080)), inside(netns, lambda: listen(port=8081)):
            expected = {Listener(8080, reachable=False), Listener(8081)}
            assert await bench.driver.listeners(handle) == expected
            assert _by_proc(pid) == expected

    run(scenario())


@CONTAINER
def test_too_much_memory_ends_a_container_and_is_named_as_the_reason(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start("tail", "/dev/zero", limits=Limits(1, 32, 64))
        assert await bench.driver.wait(handle) == Exit(137, "oom")

    run(scenario())


@CONTAINER
def test_too_much_memory_in_one_process_leaves_the_container_alive(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start(limits=Limits(1, 32, 64))
        assert (await bench.sh(handle, "tail /dev/zero")).code == 137
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@PROCESS
def test_too_much_memory_in_one_process_is_refused_to_it(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start(limits=Limits(1, 32, 64))
        done = await bench.sh(handle, "tail /dev/zero")
        assert done.code != 0
        assert b"out of memory" in done.stderr

    run(scenario())


@BOUNDING
def test_the_number_of_processes_is_bounded_where_a_driver_says_so(bench: Bench) -> None:
    assert {"limits", "rlimit-pids"} & set(bench.driver.flags)

    async def scenario() -> None:
        handle = await bench.start(limits=Limits(1, 64, 12))
        done = await bench.sh(handle, "for i in $(seq 40); do sleep 3 & done; wait")
        assert b"can't fork" in done.stderr

    run(scenario())


@CONTAINER
def test_limits_change_while_it_runs(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start(limits=Limits(1, 64, 64))
        group = cgroups.Cgroup(handle.state["container"])
        for limits in (Limits(0.5, 128, 9), Limits(2, 48, 64)):
            await bench.driver.set_limits(handle, limits)
            assert bounds.limits(group) == limits
        await bench.driver.set_limits(handle, Limits(1, 64, 9))
        assert b"can't fork" in (await bench.sh(handle, "for i in $(seq 40); do sleep 3 & done; wait")).stderr

    run(scenario())


def may_raise() -> bool:
    """Has this process CAP_SYS_RESOURCE?"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> SYS_RESOURCE & 1)


@PROCESS
def test_other_limits_hold_for_the_processes_that_run_and_for_those_that_come(bench: Bench) -> None:
    """Memory of each process, by resource limits; one that may raise them (capabilities(7)) can give more than before, too."""

    async def scenario() -> None:
        handle = await bench.start("/bin/sh", "-c", "sleep 1000 & sleep 1000", limits=Limits(1, 64, 64))
        await bench.driver.set_limits(handle, Limits(1, 48, 64))
        said = await bench.said(handle, "cat /proc/[0-9]*/limits | grep 'Max data' | sort -u | tr -s ' '")
        assert said == f"Max data size {48 << 20} {48 << 20} bytes"
        if may_raise():
            await bench.driver.set_limits(handle, Limits(1, 128, 64))
            assert str(128 << 20) in await bench.said(handle, "grep 'Max data' /proc/1/limits /proc/self/limits")
        else:
            with pytest.raises(RuntimeFault) as refusal:
                await bench.driver.set_limits(handle, Limits(1, 128, 64))
            assert refusal.value.code == "limits.refused"
        assert await bench.condition(handle) is Condition.RUNNING

    run(scenario())


@CONTAINER
def test_a_container_cannot_administer_the_host(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        status = await bench.said(handle, "grep -E '^(NoNewPrivs|Seccomp):|^CapEff' /proc/self/status")
        capabilities, no_new, seccomp = (line.split()[1] for line in status.splitlines())
        assert (no_new, seccomp) == ("1", "2")
        assert int(capabilities, 16) & (1 << 21 | 1 << 12 | 1 << 19 | 1 << 27) == 0  # SYS_ADMIN, NET_ADMIN, SYS_PTRACE, MKNOD
        for attempt in (
            "mkdir /tmp/m; busybox mount -t tmpfs x /tmp/m",
            "mknod /tmp/d b 7 0",
            "busybox unshare -r true",
            "echo 1 > /proc/sys/kernel/panic",
        ):
            assert (await bench.sh(handle, attempt)).code != 0, attempt
        assert (await bench.said(handle, "cat /proc/kcore | wc -c")) == "0"

    run(scenario())
