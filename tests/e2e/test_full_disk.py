"""A full disk costs refusals and time, and nothing else: no crash for good, no memory, no person; with room everything goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import truth
from support.disks import Disk, tiny_disk
from support.installation import Running, compose_image, up
from support.killing import pid_of
from support.patient import Patient
from support.remains import remains
from support.remains import running as still_running
from support.waiting import eventually, run

from domain.kernel.errors import Refused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(240),
]
PARTS = ("nats", "control", "projector", "node-1")
BURST = 300
GROWTH_MB = 64
"""What a part may need more during an outage than before it."""
WORTH_REPEATING = {"bus.unavailable", "bus.overloaded", "storage.blocked", "node.disk-full", "node.offline", "view.behind"}
NO_ROOM = {"node.disk-full", "storage.blocked"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compose_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with tiny_disk(tmp_path / "tiny", 64) as mounted:
        yield mounted


def test_everything_on_one_full_disk_refuses_and_goes_on_when_there_is_room(disk: Disk, image: str) -> None:
    with up(disk.path / "state", "--driver", "process") as running:
        run(through_a_full_disk(running, disk, image))
    assert remains(disk.path / "state") == []


async def through_a_full_disk(running: Running, disk: Disk, image: str) -> None:
    async with Patient.connect(running.dir, "full") as p:
        made = await p.cmd("template.create", image=image, alias="base", memory_mb=64, wait_s=20)
        await p.job(made["job_id"])
        box = (await p.cmd("sandbox.create", template="base", wait_s=10))["sandbox_id"]
        await p.sandbox(box, "RUNNING")
        before = sizes(running)
        disk.fill()
        refused = await until_everything_is_refused(p, disk, box)
        assert {(r.code in WORTH_REPEATING, r.retryable) for r in refused} == {(True, True)}, refused
        after = sizes(running)
        assert {part: after[part] - before[part] for part in PARTS if after[part] - before[part] > GROWTH_MB} == {}
        disk.empty()
        await everything_works(p, running, box)


def commands(box: str, attempt: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("sandbox.create", f"create-{attempt}", {"template": "base"}),
        ("sandbox.exec", f"exec-{attempt}", {"sandbox_id": box, "cmd": ["/bin/sh", "-c", f"echo exec-{attempt} >> /acts"]}),
        ("sandbox.set-ttl", f"ttl-{attempt}", {"sandbox_id": box, "ttl_s": 3600}),
    ]


async def until_everything_is_refused(p: Patient, disk: Disk, box: str) -> list[Refused]:
    """Each kind of command finds some room in half-filled pages at first. In the end a burst of them is refused too."""
    refused: list[Refused] = []
    attempt = 0

    async def once(name: str, command: str, body: dict[str, Any]) -> bool:
        try:
            await p.caller.command("default", name, body, command, timeout=3)
        except Refused as refusal:
            refused.append(refusal)
            return True
        return False

    while True:
        attempt += 1
        disk.fill()
        if all(await asyncio.gather(*(once(*command) for command in commands(box, attempt)))):
            break
    burst = [once("sandbox.set-ttl", f"burst-{n}", {"sandbox_id": box, "ttl_s": 60 + n}) for n in range(BURST)]
    assert sum(await asyncio.gather(*burst)) == BURST
    p.bodies |= {command: (name, body) for n in range(1, attempt + 1) for name, command, body in commands(box, n)}
    return refused


async def everything_works(p: Patient, running: Running, box: str) -> None:
    """Each refused command is answered under its own id, and has acted once."""
    for command in list(p.bodies):
        await p.again(command)
    acts = (await p.sh(box, "cat /acts")).split()
    assert len(acts) == len(set(acts)), acts
    fresh = (await p.cmd("sandbox.create", template="base", wait_s=10))["sandbox_id"]
    await p.sandbox(fresh, "RUNNING")
    assert await p.sh(fresh, "echo alive") == "alive\n"
    for item in await p.items("sandboxes"):
        if item["state"] != "DEAD":
            await p.cmd("sandbox.delete", sandbox_id=item["sandbox_id"], wait_s=10)
            await p.sandbox(item["sandbox_id"], "DEAD")

    async def closed() -> bool:
        return truth.open_work(await truth.whole_log(running.dir)) == []

    await eventually(closed, within=20)
    truth.check_chains(await truth.whole_log(running.dir))
    await truth.check_views(running.dir)
    assert all(pid_of(running.dir, part) for part in PARTS)


def sizes(running: Running) -> dict[str, int]:
    """Resident memory of every part, in MiB."""
    found = {}
    for part in PARTS:
        lines = Path(f"/proc/{pid_of(running.dir, part)}/status").read_text().splitlines()
        found[part] = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))
    return found


def test_a_node_whose_disk_is_full_fails_cleanly_and_works_again_with_room(tmp_path: Path, disk: Disk, image: str) -> None:
    """Bus and views have another disk here, and go on."""
    directory = tmp_path / "state"
    directory.mkdir()
    (disk.path / "nodes").mkdir()
    (directory / "nodes").symlink_to(disk.path / "nodes")
    with up(directory, "--driver", "process") as running:
        run(through_a_full_node(running, disk, image))
    assert remains(directory) + still_running(disk.path) + list((disk.path / "nodes").iterdir()) == []


async def through_a_full_node(running: Running, disk: Disk, image: str) -> None:
    async with Patient.connect(running.dir, "node") as p:
        disk.fill()
        made = await fails(p, "template.create", image=image, alias="base", memory_mb=64, wait_s=20)
        disk.empty()
        await p.job((await p.cmd("template.redo", template=made["template_id"], mode="ALL", wait_s=20))["job_id"])
        box = (await p.cmd("sandbox.create", template="base", wait_s=10))["sandbox_id"]
        await p.sandbox(box, "RUNNING")
        await p.sh(box, "echo here > /file")

        disk.fill()
        with pytest.raises(Refused) as caught:
            await p.cmd("sandbox.create", template="base", wait_s=10)
        asked = caught.value.details
        assert (caught.value.code, caught.value.retryable, asked["cause"] in NO_ROOM) == ("sandbox.startup-failed", False, True), asked
        assert (await p.sandbox(asked["sandbox_id"], "DEAD"))["reason"] == "startup_failed"
        disk.empty()
        assert not list((running.dir / "nodes" / "node-1" / "storage").rglob(asked["sandbox_id"]))

        disk.fill()
        await fails(p, "snapshot.create", sandbox_id=box, wait_s=10)
        disk.empty()
        assert (await p.item("sandboxes", box))["state"] == "RUNNING"
        assert await p.sh(box, "cat /file") == "here\n"
        taken = await p.cmd("snapshot.create", sandbox_id=box, wait_s=10)
        await p.job(taken["job_id"])
        for snapshot in await p.items("snapshots"):
            await p.cmd("snapshot.delete", snapshot_id=snapshot["snapshot_id"], wait_s=10)
        await p.cmd("sandbox.delete", sandbox_id=box, wait_s=10)
        await p.sandbox(box, "DEAD")


async def fails(p: Patient, name: str, /, **body: Any) -> dict[str, Any]:
    """The details of the refusal of a command that the node has no room for."""
    with pytest.raises(Refused) as caught:
        await p.caller.command("default", name, body, p.new_id(), timeout=60)
    assert (caught.value.code, caught.value.retryable) in {(code, True) for code in NO_ROOM}, caught.value
    return dict(caught.value.details)
