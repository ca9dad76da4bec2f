"""What microVMs have that other sandboxes have not: their memory can be saved, and gone on from, more than once."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import bounds
from support.benches import KINDS, Bench
from support.guests import GUESTS
from support.waiting import eventually, run

from agents.drivers.driver import Condition, Handle, Limits, RuntimeFault
from agents.drivers.microvm import programs
from agents.drivers.microvm.bounds import OWN_MB, OWN_THREADS
from agents.drivers.microvm.memory import Memory
from agents.drivers.vm import VmDriver
from agents.guest import image
from agents.host import processes
from agents.host.cgroups import Cgroup
from agents.storage import qcow2

VM = pytest.mark.parametrize("kind", [KINDS["vm"]], indirect=True, ids=str)
pytestmark = VM

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.01; done"
"""/dev/shm is memory: a disk alone would not bring it back. Each ``echo`` is the shell's own: its stdout is that file for a moment."""


class Saved:
    """A snapshot of a bench's sandbox: a memory, and the disk that was frozen with it."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.memory = bench.directory / f"{name}.memory"
        self.disk = Path()
        self.memory.mkdir()
        self.made = 0

    async def take(self, handle: Handle, disk: Path) -> Saved:
        onward = self.bench.directory / f"{self.memory.stem}.onward.qcow2"
        qcow2.create(onward, disk)
        self.disk = await self.bench.driver.snapshot(handle, self.memory, onward)
        assert self.disk == disk
        return self

    async def start(self, name: str, generation: int = 0, **more: object) -> Handle:
        """Go on from it, as this sandbox."""
        self.made += 1
        root = self.bench.directory / f"{self.memory.stem}.{self.made}.qcow2"
        qcow2.create(root, self.disk)
        spec = self.bench.spec("/bin/sleep", "1", name=name, generation=generation, hostname=name)
        return await self.bench.driver.start(replace(spec, root=root, memory=self.memory, **more))


async def counting(bench: Bench) -> Handle:
    handle = await bench.start("/bin/sh", "-c", COUNT)

    async def begun() -> bool:
        return await count(bench, handle) > 3

    await eventually(begun)
    return handle


async def count(bench: Bench, handle: Handle) -> int:
    return int(await bench.said(handle, "cat /dev/shm/count 2>/dev/null || echo 0") or 0)


async def counts_beyond(bench: Bench, handle: Handle, number: int) -> None:
    async def beyond() -> bool:
        return await count(bench, handle) > number

    await eventually(beyond)


def test_a_rollback_brings_back_what_processes_had_in_mind(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await counting(bench)
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        then = await count(bench, handle)
        await bench.said(handle, "echo later > /srv/later")
        await counts_beyond(bench, handle, then + 50)
        await bench.driver.destroy("sb-1")
        back = await saved.start("sb-1", generation=1)
        now = await count(bench, back)
        assert now <= then + 50
        assert (await bench.sh(back, "cat /srv/later")).code == 1
        await counts_beyond(bench, back, now)
        assert back.generation == 1

    run(scenario())


def test_clones_go_on_each_by_itself_while_the_original_does(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await counting(bench)
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        clones = [await saved.start(f"sb-{n}") for n in (2, 3)]
        for n, clone in enumerate(clones, 2):
            assert await bench.said(clone, f"echo {n} > /srv/mine; hostname") == f"sb-{n}"
        assert [await bench.said(clone, "cat /srv/mine") for clone in clones] == ["2", "3"]
        assert (await bench.sh(handle, "cat /srv/mine")).code == 1
        for machine in (handle, *clones):
            await counts_beyond(bench, machine, await count(bench, machine))

    run(scenario())


def test_a_clone_of_a_clone_has_the_memory_of_both(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.said(handle, "echo first > /dev/shm/first")
        saved = await Saved(bench, "s1").take(handle, bench.place("sb-1"))
        child = await saved.start("sb-2")
        await bench.said(child, "echo second > /dev/shm/second; echo disk > /srv/second")
        again = await Saved(bench, "s2").take(child, bench.directory / "s1.1.qcow2")
        await bench.driver.destroy("sb-1")
        await bench.driver.destroy("sb-2")
        grandchild = await again.start("sb-3")
        assert await bench.said(grandchild, "cat /dev/shm/first /dev/shm/second /srv/second") == "first\nsecond\ndisk"
        await bench.said(grandchild, "cat /bin/busybox | md5sum")

    run(scenario())


def test_a_machine_is_saved_more_than_once(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        disk, snapshots = bench.place("sb-1"), []
        for n in range(3):
            await bench.said(handle, f"echo {n} > /dev/shm/mind; echo {n} > /srv/disk")
            snapshots.append(await Saved(bench, f"s{n}").take(handle, disk))
            disk = bench.directory / f"s{n}.onward.qcow2"
        for n, saved in enumerate(snapshots):
            copy = await saved.start(f"sb-{n + 2}")
            assert await bench.said(copy, "cat /dev/shm/mind /srv/disk") == f"{n}\n{n}"

    run(scenario())


def test_copies_draw_other_random_numbers_and_have_other_names(bench: Bench) -> None:
    (bench.root / "etc/machine-id").write_text("0" * 32 + "\n")

    async def scenario() -> None:
        handle = await bench.start()
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        machines = [handle, await saved.start("sb-2"), await saved.start("sb-3")]
        drawn = {await bench.said(machine, "head -c 16 /dev/urandom | hexdump -C") for machine in machines}
        assert len(drawn) == 3
        assert len({await bench.said(machine, "cat /etc/machine-id") for machine in machines}) == 3

    run(scenario())


def test_the_clock_of_a_restored_machine_is_the_hosts(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        assert int(await bench.said(handle, "date +%s")) >= int(time.time()) - 60
        await bench.said(handle, "date -s 2001-02-03")
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        assert await bench.said(handle, "date +%Y") == "2001"
        assert int(await bench.said(await saved.start("sb-2"), "date +%s")) >= int(time.time()) - 60

    run(scenario())


def test_a_paused_machine_is_saved_and_stays_paused(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await counting(bench)
        await bench.driver.pause(handle)
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        assert await bench.condition(handle) is Condition.PAUSED
        copy = await saved.start("sb-2")
        await counts_beyond(bench, copy, await count(bench, copy))

    run(scenario())


def test_the_next_agent_saves_what_an_earlier_one_started(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.said(handle, "echo kept > /dev/shm/kept")
        await bench.again()
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        assert await bench.said(await saved.start("sb-2"), "cat /dev/shm/kept") == "kept"

    run(scenario())


def test_a_memory_of_another_qemu_or_other_devices_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        saved = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        manifest = saved.memory / "machine.json"
        said = json.loads(manifest.read_text())
        for other in ({"qemu": "0.1"}, {"machine": "of other devices"}):
            manifest.write_text(json.dumps({**said, "build": {**said["build"], **other}}))
            with pytest.raises(RuntimeFault) as refusal:
                await saved.start("sb-2")
            assert refusal.value.code == "snapshot.incompatible"
        manifest.unlink()
        with pytest.raises(RuntimeFault) as refusal:
            await saved.start("sb-2")
        assert refusal.value.code == "snapshot.unreadable"
        assert set(await bench.driver.list()) == {"sb-1"}

    run(scenario())


def test_a_memory_goes_on_under_the_qemu_that_saved_it_though_new_machines_get_another(bench: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = shelf_without_qemu(tmp_path / "guests")
        bench.driver = VmDriver(bench.directory / "driver", shelf)
        handle = await counting(bench)
        first = await Saved(bench, "s").take(handle, bench.place("sb-1"))
        await bench.driver.close()
        own = shelf / "qemu" / programs.NAME
        own.parent.mkdir()
        own.write_text("#!/bin/sh\n[ $1 = --version ] && echo 'QEMU emulator version 9.9 (own)'\n")
        own.chmod(0o755)
        bench.driver = VmDriver(bench.directory / "driver", shelf)
        assert (await bench.driver.version()).startswith("qemu 9.9 (own)")
        assert bench.driver.needs(first.memory) in bench.driver.flags
        copy = await first.start("sb-2")
        second = await Saved(bench, "t").take(copy, first.bench.directory / "s.1.qcow2")
        assert Memory.read(second.memory).build == Memory.read(first.memory).build
        await counts_beyond(bench, copy, await count(bench, copy))

    run(scenario())


def shelf_without_qemu(shelf: Path) -> Path:
    """The tests' guest image in a place where no QEMU was built."""
    shelf.mkdir()
    found = image.current(GUESTS)
    assert found is not None
    (shelf / "current").symlink_to(found.version)
    (shelf / found.version).symlink_to(found.directory)
    return shelf


def test_limits_change_inside_the_machine_and_cannot_outgrow_it(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.set_limits(handle, Limits(0.5, 64, 9))
        assert b"can't fork" in (await bench.sh(handle, "for i in $(seq 40); do sleep 3 & done; wait")).stderr
        for limits in (Limits(1, 4096, 9), Limits(8, 64, 9)):
            with pytest.raises(RuntimeFault) as refusal:
                await bench.driver.set_limits(handle, limits)
            assert refusal.value.code == "limits.refused"

    run(scenario())


@pytest.mark.root
def test_who_is_root_in_a_machine_has_no_more_of_the_host_than_it_was_given(bench: Bench) -> None:
    if "host-limits" not in bench.driver.flags:
        pytest.skip("this user may not make control groups")

    async def scenario() -> None:
        bench.driver = VmDriver(bench.directory / "driver", GUESTS, waiting=1)
        handles = [await bench.start(name="sb-1", limits=Limits(0.5, 128, 64))]
        await eventually(lambda: _waiting(bench))
        handles.append(await bench.start(name="sb-2", limits=Limits(0.5, 128, 64)))
        for handle in handles:
            group = Cgroup(handle.state["cgroup"])
            assert group.members() == {handle.state["pid"]}
            assert bounds.limits(group) == Limits(0.75, 192 + OWN_MB, 1 + OWN_THREADS)
        await bench.driver.set_limits(handles[0], Limits(1, 128, 64))
        assert bounds.limits(Cgroup(handles[0].state["cgroup"])).cpu == 1.25
        await bench.again()
        for name in ("sb-1", "sb-2"):
            await bench.driver.destroy(name)
        assert not any(Cgroup(handle.state["cgroup"]).exists() for handle in handles)

    run(scenario())


@pytest.mark.root
def test_a_control_group_that_a_crash_left_is_taken_away(bench: Bench) -> None:
    if "host-limits" not in bench.driver.flags:
        pytest.skip("this user may not make control groups")

    async def scenario() -> None:
        handle = await bench.start()
        left = Cgroup(handle.state["cgroup"].rpartition("-")[0] + "-left")
        left.make()
        await bench.again()
        await bench.driver.list()
        assert not left.exists()
        assert Cgroup(handle.state["cgroup"]).exists()

    run(scenario())


def test_files_are_written_and_read_without_a_process(bench: Bench) -> None:
    (bench.root / "srv/link").symlink_to("../../../../init")
    data = bytes(range(256)) * 300

    async def scenario() -> None:
        handle = await bench.start()
        await bench.driver.write_file(handle, "/srv/new", data, 0o600)
        assert await bench.driver.read_file(handle, "srv/new", 1 << 20) == data
        assert await bench.said(handle, "stat -c %a /srv/new; wc -c < /srv/new") == f"600\n{len(data)}"
        assert await bench.driver.read_file(handle, "/srv/new", 5) == data[:5]
        with pytest.raises(RuntimeFault) as refusal:
            await bench.driver.read_file(handle, "/srv/link", 5)
        assert refusal.value.code == "file.not-read"

    run(scenario())


def test_what_the_kernel_says_is_in_the_runtime_log(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        await bench.said(handle, "echo '<1>from inside' > /proc/sysrq-trigger 2>/dev/null; echo s > /proc/sysrq-trigger")
        await eventually(lambda: "sysrq" in bench.log("runtime"))

    run(scenario())


def _waiting(bench: Bench) -> list[int]:
    """Pids of the machines that wait."""
    return [found.machine.pid for found in bench.driver._pool._waiting]


def test_a_machine_that_waits_becomes_the_next_sandbox_of_its_kind(bench: Bench) -> None:
    async def scenario() -> None:
        bench.driver = VmDriver(bench.directory / "driver", GUESTS, waiting=1)
        await bench.start(name="sb-1")
        [pid] = await eventually(lambda: _waiting(bench))
        handle = await bench.start("/bin/sh", "-c", "echo said; sleep 100000", name="sb-2")
        assert handle.state["pid"] == pid
        assert await bench.said(handle, "echo 2 > /srv/mine; cat /srv/mine") == "2"
        await eventually(lambda: bench.log(name="sb-2") == "said\n")
        saved = await Saved(bench, "s").take(handle, bench.place("sb-2"))
        assert await bench.said(await saved.start("sb-3"), "cat /srv/mine") == "2"
        await eventually(lambda: len(_waiting(bench)) == 2)
        await bench.driver.destroy("sb-2")
        assert set(await bench.driver.list()) == {"sb-1", "sb-3"}

    run(scenario())


def test_a_rollback_is_a_waiting_machine_that_takes_over_and_goes_on_with_the_log(bench: Bench) -> None:
    async def scenario() -> None:
        bench.driver = VmDriver(bench.directory / "driver", GUESTS, waiting=1)
        first = await counting(bench)
        saved = await Saved(bench, "s").take(first, bench.place("sb-1"))
        handle = await saved.start("sb-2")
        then = await count(bench, handle)
        await bench.said(handle, "echo before > /proc/1/fd/2; echo 1 > /srv/later; echo 1 > /dev/shm/later")
        await eventually(lambda: bench.log("stderr", "sb-2") == "before\n")
        await eventually(lambda: len(_waiting(bench)) == 2)
        waited = _waiting(bench)
        back = await saved.start("sb-2", generation=1)
        assert back.state["pid"] in waited
        assert await bench.said(back, "ls /srv/later /dev/shm/later 2>/dev/null | cat; hostname") == "sb-2"
        await bench.said(back, "echo after > /proc/1/fd/2")
        await eventually(lambda: bench.log("stderr", "sb-2") == "before\nafter\n")
        await counts_beyond(bench, back, then)

    run(scenario())


def test_a_machine_that_waits_for_nobody_any_more_is_ended(bench: Bench) -> None:
    async def scenario() -> None:
        bench.driver = VmDriver(bench.directory / "driver", GUESTS, waiting=1)
        saved = await Saved(bench, "s").take(await bench.start(), bench.place("sb-1"))
        await saved.start("sb-2")
        await eventually(lambda: len(_waiting(bench)) == 2)
        kept = next(found for found in bench.driver._pool._waiting if found.kind.memory != saved.memory)
        shutil.rmtree(saved.memory)
        await bench.driver.list()
        assert _waiting(bench) == [kept.machine.pid]
        assert kept.machine.alive

    run(scenario())


def test_machines_that_wait_for_an_agent_that_died_are_ended_by_the_next(bench: Bench) -> None:
    async def scenario() -> None:
        driver = VmDriver(bench.directory / "driver", GUESTS, waiting=1)
        bench.driver = driver
        handle = await bench.start()
        [pid] = await eventually(lambda: _waiting(bench))
        seen = processes.stat(pid)
        assert seen is not None
        driver._pool._waiting.clear()  # as if it had died: nobody ends them
        await driver.close()
        bench.driver = VmDriver(bench.directory / "driver", GUESTS)
        assert set(await bench.driver.list()) == {"sb-1"}
        assert not processes.alive(pid, seen.started)
        assert await bench.said(handle, "echo on") == "on"
        assert not list((bench.directory / "driver").glob(".waiting-*"))

    run(scenario())


def test_processes_that_end_in_the_same_moment_do_not_stop_the_guest(bench: Bench) -> None:
    async def scenario() -> None:
        handle = await bench.start()
        for _ in range(6):
            said = await asyncio.gather(*(bench.said(handle, f"echo {n}; cat", stdin=b"in", timeout_s=20) for n in range(8)))
            assert said == [f"{n}\nin" for n in range(8)]

    run(scenario())
