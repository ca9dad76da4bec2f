"""kill -9 of a real agent around the mounting of a disk: afterwards one sandbox has it, or nobody, and its data is there."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.agents import AgentProcess, Installation

from agents.drivers.crun import find
from agents.host import loop
from domain.nodes.orders import DiskGrant, ReportKind, Verb

pytestmark = [pytest.mark.slow, pytest.mark.root]

VOLUME = "vol-" + "a" * 24
BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
CRUN = pytest.mark.skipif(find() is None, reason="crun is not installed")


def with_disk(place: Installation, name: str, epoch: int, **recipe: Any) -> dict[str, Any]:
    grant = DiskGrant(disk="data", volume_id=VOLUME, epoch=epoch, mount_path="/data")
    return {**place.provision(name, **recipe), "disks": [grant.model_dump(mode="json")]}


async def said(place: Installation, sandbox: str, script: str) -> str:
    report = await place.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["/bin/sh", "-c", script]})
    assert report.kind is ReportKind.DONE, report
    return base64.b64decode(report.body["stdout"]).decode()


def mounted(place: Installation) -> list[str]:
    """Where the disk is mounted on this host, and the devices that are it."""
    volume = place.own / "volumes" / VOLUME
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(volume) in line]
    return [*lines, *loop.devices_of(volume / "image")]


@pytest.mark.parametrize("driver", [pytest.param("oci", marks=CRUN), pytest.param("process", marks=BWRAP)])
def test_a_disk_survives_agents_that_die_around_its_mount(installed, run, driver: str) -> None:
    async def scenario() -> None:
        async with installed() as place:
            async with AgentProcess(place, driver, "--port-wait", "0.05", crash_at="disks:after") as agent:
                made = await place.tell(Verb.DISK_PROVISION, {"volume_id": VOLUME, "size_mb": 32, "filesystem": "ext4"})
                assert made.body == {"kind": "image", "quota": True}
                first = await place.send(place.order(Verb.SANDBOX_PROVISION, with_disk(place, "one", 1)))
                assert await agent.ended() == -9, agent.log()[-3000:]
            assert len(mounted(place)) >= 2, "mounted, and nobody there who knows"
            async with AgentProcess(place, driver, "--port-wait", "0.05", crash_at="sandbox-destroy:after") as agent:
                assert (await place.end_of(first)).kind is ReportKind.DONE, agent.log()[-3000:]
                await said(place, first.process_id, "echo kept > /data/file")
                busy = await place.tell(Verb.SANDBOX_PROVISION, with_disk(place, "two", 2))
                assert busy.error is not None
                assert (busy.error.code, busy.error.retryable) == ("disk.busy", True)
                end = await place.send(place.order(Verb.SANDBOX_DESTROY, {"sandbox_id": first.process_id, "grace_s": 0}))
                assert await agent.ended() == -9, agent.log()[-3000:]
            assert mounted(place) == []
            async with AgentProcess(place, driver, "--port-wait", "0.05", crash_at="undo-disks:before") as agent:
                assert (await place.end_of(end)).kind is ReportKind.DONE
                failing = await place.send(place.order(Verb.SANDBOX_PROVISION, with_disk(place, "four", 3, probe_port=9)))
                assert await agent.ended() == -9, agent.log()[-3000:]
            async with AgentProcess(place, driver) as agent:
                failed = await place.end_of(failing)
                assert (failed.kind, failed.body["uncompensated"]) == (ReportKind.FAILED, []), failed
                assert mounted(place) == []
                stale = await place.tell(Verb.SANDBOX_PROVISION, with_disk(place, "three", 1))
                assert stale.error is not None
                assert stale.error.code == "disk.stale-lease"
                last = await place.tell(Verb.SANDBOX_PROVISION, with_disk(place, "five", 4))
                assert last.kind is ReportKind.DONE, last
                assert await said(place, last.process_id, "cat /data/file") == "kept\n"
                await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": last.process_id, "grace_s": 0})
                removed = await place.tell(Verb.DISK_REMOVE, {"volume_id": VOLUME}, key=VOLUME)
                assert removed.kind is ReportKind.DONE, removed
                assert list((place.own / "volumes").iterdir()) == []

    run(scenario())
