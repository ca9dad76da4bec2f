"""The host layer under the drivers: children, orphans, identities, groups."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from support.waiting import eventually, run

from agents.drivers import launchers
from agents.drivers.driver import RuntimeFault
from agents.drivers.identity import Who, environment, read_text, resolve
from agents.host import cgroups, counters, ports, processes, reaper, spawn
from agents.host.syscalls import open_in_root

pytestmark = pytest.mark.quick


def test_a_program_answers_with_all_that_it_said() -> None:
    async def scenario() -> None:
        done = await spawn.run(["sh", "-c", "cat; echo err >&2; exit 6"], stdin=b"x" * 300_000)
        assert (done.code, len(done.stdout), done.stderr) == (6, 300_000, b"err\n")

    run(scenario())


def test_a_program_that_there_is_not_is_an_error_and_leaks_nothing() -> None:
    async def scenario() -> None:
        before = _open_files()
        for _ in range(20):
            with pytest.raises(FileNotFoundError):
                await spawn.run(["no-program-of-that-name"])
        assert _open_files() == before

    run(scenario())


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_inherited_that_was_not_meant_to_be() -> None:
    async def scenario() -> None:
        leaky, kept = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(leaky, True)
        try:
            done = await spawn.run(["sh", "-c", "readlink /proc/$$/fd/*"], keep=(kept,))
        finally:
            os.close(leaky)
            os.close(kept)
        assert b"/dev/zero" in done.stdout
        assert b"/dev/null" not in done.stdout

    run(scenario())


def test_a_cancelled_program_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        task = asyncio.ensure_future(spawn.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000"]))
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes.stat(int((tmp_path / "pid").read_text())) is None

    run(scenario())


def test_burying_orphans_steals_no_exit_from_others() -> None:
    leading = subprocess.Popen(["sh", "-c", "exit 11"], start_new_session=True)
    shared = subprocess.Popen(["sh", "-c", "exit 12"])

    async def scenario() -> None:
        program = await asyncio.create_subprocess_exec("sh", "-c", "exit 13")
        await eventually(lambda: all((s := processes.stat(p.pid)) is not None and s.state == "Z" for p in (leading, shared)))
        for _ in range(50):
            reaper.sweep()
        assert await program.wait() == 13

    run(scenario())
    assert (leading.wait(), shared.wait()) == (11, 12)


def test_orphans_are_buried() -> None:
    reaper.become_subreaper()

    async def scenario() -> None:
        done = await spawn.run(["sh", "-c", "sleep 0.1 >/dev/null 2>&1 & echo $!"])
        orphan = int(done.stdout)

        def buried() -> bool:
            reaper.sweep()
            return processes.stat(orphan) is None

        await eventually(buried)

    run(scenario())


def test_the_end_of_a_process_is_awaited_also_when_it_is_somebody_elses_child() -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 0.2 & echo $!; exec 1>&-; wait"], stdout=subprocess.PIPE, text=True)

    async def scenario() -> None:
        with shell as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            seen = processes.stat(pid)
            assert seen is not None
            assert not await processes.ended(pid, seen.started, timeout_s=0.001)
            assert await processes.ended(pid, seen.started, timeout_s=10)
            assert await processes.ended(pid, seen.started + 1, timeout_s=0)

    run(scenario())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/bin/sh\nbad:x:x:y::/:\n")
    (made / "etc/group").write_text("root:x:0:\nweb:x:34:\nlogs:x:50:root,web\n")
    return made


@pytest.mark.parametrize(
    ("user", "who"),
    [
        ("", Who(0, 0, (50,), "/root")),
        ("0", Who(0, 0, (50,), "/root")),
        ("web", Who(33, 34, (50,), "/var/www")),
        ("33", Who(33, 34, (50,), "/var/www")),
        ("web:logs", Who(33, 50, (), "/var/www")),
        ("4242", Who(4242, 0, (), "/")),
        ("1000:100", Who(1000, 100, (), "/")),
    ],
)
def test_users_are_looked_up_in_the_root(root: Path, user: str, who: Who) -> None:
    assert resolve(root, user) == who


@pytest.mark.parametrize("user", ["nobody", "web:nothing", "bad", "99999999999", "root:-1"])
def test_users_that_are_not_there_are_refused(root: Path, user: str) -> None:
    with pytest.raises(RuntimeFault) as refusal:
        resolve(root, user)
    assert refusal.value.code == "user.unknown"


def test_a_root_without_a_user_list_has_root(tmp_path: Path) -> None:
    assert resolve(tmp_path, "") == Who()


def test_no_link_in_a_root_leads_out_of_it(root: Path) -> None:
    (root / "up").symlink_to("../../../../../../etc")
    (root / "absolute").symlink_to("/etc")
    assert read_text(root, "up/passwd") == read_text(root, "absolute/passwd") == (root / "etc/passwd").read_text()
    (root / "proc").symlink_to("/proc/self/root")
    with pytest.raises(OSError):  # noqa: PT011  # which of the errnos is the kernel's affair
        os.close(open_in_root(root, "proc/etc/passwd"))


def test_a_pipe_in_place_of_a_file_does_not_block(root: Path) -> None:
    os.mkfifo(root / "etc/fifo")
    assert read_text(root, "etc/fifo") == ""


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_what_cannot_be_a_variable_is_refused(name: str) -> None:
    with pytest.raises(RuntimeFault, match="environment variable"):
        environment(Who(), {name: "x"})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], cgroups.Layout.NONE),
        (["cgroup.controllers"], cgroups.Layout.V2),
        (["memory/cgroup.procs"], cgroups.Layout.V1),
        (["memory/cgroup.procs", "unified/cgroup.controllers"], cgroups.Layout.HYBRID),
    ],
)
def test_cgroup_layouts_are_told_apart(tmp_path: Path, files: list[str], found: cgroups.Layout) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert cgroups.layout(tmp_path) is found


def test_groups_of_both_versions_are_counted_and_one_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    written = {
        one / "memory/cgroup.procs": "",
        one / "cpuacct/x/cpuacct.usage": "2500000999\n",
        one / "cpuacct/x/cpuacct.usage_sys": "500000\n",
        one / "memory/x/memory.usage_in_bytes": "4096\n",
        one / "memory/x/memory.max_usage_in_bytes": "8192\n",
        one / "memory/x/memory.memsw.usage_in_bytes": "5000\n",
        one / "memory/x/memory.memsw.max_usage_in_bytes": "9000\n",
        one / "pids/x/pids.current": "3\n",
        one / "memory/half/memory.usage_in_bytes": "1\n",
        two / "cgroup.controllers": "cpu memory pids",
        two / "x/cpu.stat": "usage_usec 2500000\nuser_usec 2499500\nsystem_usec 500\n",
        two / "x/memory.current": "4096\n",
        two / "x/memory.peak": "8192\n",
        two / "x/memory.swap.current": "904\n",
        two / "x/memory.swap.peak": "808\n",
        two / "x/pids.current": "3\n",
        two / "half/cpu.stat": "nr_periods 0\n",
    }
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    expected = counters.Counters(2_500_000, 500, memory=4096, peak=8192, swap=904, swap_peak=808, pids=3)
    for mount in (one, two):
        assert counters.of_groups(["x", "half", "none"], mount) == {"x": expected}


def test_a_version_two_group_is_read_and_written(tmp_path: Path) -> None:
    """Files as cgroup-v2.rst names them; the kernel of this host may have the other version only."""
    group = tmp_path / "strandline-x"
    group.mkdir()
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    for name, text in {
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.current": "4096\n",
        "pids.current": "3\n",
        "memory.events": "low 0\noom 2\noom_kill 1\n",
        "cgroup.events": "populated 1\nfrozen 1\n",
        "cgroup.procs": "",
    }.items():
        (group / name).write_text(text)
    found = cgroups.Cgroup("strandline-x", tmp_path)
    assert found.usage() == cgroups.Usage(2.5, 4096, 3)
    assert (found.oom_kills(), found.frozen(), found.exists()) == (1, True, True)
    found.limit(1.5, 64, 7)
    assert [(group / name).read_text() for name in ("cpu.max", "memory.max", "pids.max")] == ["150000 100000", str(64 << 20), "7"]
    assert cgroups.names("strandline-", tmp_path) == {"strandline-x"}


@pytest.mark.parametrize("reached", [True, False], ids=["its caller is still there", "its caller was cancelled"])
def test_a_look_at_ports_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    def slowly(_pid: int) -> socket.socket:
        begun.set()
        may_go_on.wait()
        made.append(socket.socket())
        return made[-1]

    begun, may_go_on, made = threading.Event(), threading.Event(), list[socket.socket]()
    monkeypatch.setattr(ports, "_open_inside", slowly)
    monkeypatch.setattr(ports, "_by_diag", lambda _: frozenset())

    async def scenario() -> None:
        watched = ports.Ports()
        asking = asyncio.create_task(watched.listening(1, 1))
        await eventually(begun.is_set)
        if not reached:
            asking.cancel()
        asyncio.get_running_loop().call_later(0.05, may_go_on.set)
        await asyncio.gather(asking, return_exceptions=True)
        watched.close()
        assert [opened.fileno() for opened in made] == [-1]

    run(scenario())


@pytest.mark.parametrize(("failures", "faults"), [(0, 0), (2, 0), (3, 1)])
def test_a_launcher_is_tried_again_before_it_is_said_not_to_work(tmp_path: Path, failures: int, faults: int) -> None:
    """What another agent mounts or unmounts at that moment is no fault of this host."""
    script = f'echo >> {tmp_path}/tries; [ "$(wc -l < {tmp_path}/tries)" -gt {failures} ] || {{ echo gone >&2; exit 1; }}'
    found = run(launchers._works(["sh", "-c", script], "it does not work", "mend it"))
    assert [fault.what for fault in found] == ["it does not work: gone"] * faults
