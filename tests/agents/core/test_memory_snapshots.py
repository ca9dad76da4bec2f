"""Orders to a node whose driver keeps memory: what its snapshots hold, and what a rollback and a clone go on with."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from support import guests
from support.building import building, identifier
from support.guests import GUESTS
from support.local_node import SNAPSHOT, Rig

from agents.drivers.vm import VmDriver
from domain.nodes.orders import Report, ReportKind, Verb


@pytest.fixture
def machines(tmp_path: Path, built) -> Rig:
    """A node whose sandboxes are microVMs."""
    guests.ready()
    return Rig(tmp_path / "node", *built, driver=lambda directory: VmDriver(directory, GUESTS))


async def said(rig: Rig, name: str, script: str) -> str:
    report = await rig.tell(Verb.SANDBOX_EXEC, {"sandbox_id": rig.sandbox(name), "cmd": ["/bin/sh", "-c", script]})
    assert report.kind is ReportKind.DONE, report.error
    assert report.body["exit_code"] == 0, report.body
    return base64.b64decode(report.body["stdout"]).decode().strip()


async def done(rig: Rig, verb: Verb, body: dict) -> Report:
    report = await rig.tell(verb, body)
    assert report.kind is ReportKind.DONE, report.error
    return report


def test_a_snapshot_of_a_machine_holds_its_memory_and_everything_goes_on_from_there(machines: Rig, run) -> None:
    rig = machines

    async def scenario() -> None:
        async with rig.life():
            target = {"sandbox_id": await rig.up(memory_mb=128)}
            await said(rig, "one", "mkdir -p /srv; echo mind > /dev/shm/mind; echo disk > /srv/disk")
            taken = await done(rig, Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})
            assert taken.body["holds"] == ["disk", "memory"]
            assert taken.body["size_bytes"] > 0
            again = await done(rig, Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})
            assert again.body == taken.body
            await said(rig, "one", "rm /dev/shm/mind /srv/disk")
            back = await done(rig, Verb.SANDBOX_ROLLBACK, {**target, "snapshot_id": SNAPSHOT, "generation": 1})
            assert back.body["generation"] == 1
            await done(rig, Verb.SANDBOX_PROVISION, rig.provision("two", snapshot_id=SNAPSHOT, memory_mb=128))
            for name in ("one", "two"):
                assert await said(rig, name, "cat /dev/shm/mind /srv/disk") == "mind\ndisk"
        async with rig.life():  # the next agent process
            assert await said(rig, "two", "cat /dev/shm/mind") == "mind"
            await done(rig, Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})
            assert await said(rig, "one", "cat /bin/* /usr/bin/* 2>/dev/null | head -c 100000 | wc -c") == "100000"
            for name in ("one", "two"):
                await done(rig, Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(name), "generation": 1, "grace_s": 0})
            assert await rig.left() == {}
            assert not list((rig.directory / "storage/disks/overlays").iterdir())
            assert not list((rig.directory / "storage/disks/snapshots").iterdir())

    run(scenario())


def test_a_stored_memory_goes_on_on_another_node(machines: Rig, tmp_path: Path, built, run) -> None:
    here = machines
    there = Rig(tmp_path / "elsewhere", *built, driver=lambda directory: VmDriver(directory, GUESTS))
    there.shared = here.shared

    async def scenario() -> None:
        async with here.life(), there.life():
            target = {"sandbox_id": await here.up(memory_mb=128)}
            await said(here, "one", "mkdir -p /srv; echo mind > /dev/shm/mind; echo disk > /srv/disk")
            await done(here, Verb.SANDBOX_SNAPSHOT, {**target, "snapshot_id": SNAPSHOT})
            stored = await done(here, Verb.SNAPSHOT_EXPORT, {"snapshot_id": SNAPSHOT})
            order = there.provision("two", snapshot_id=SNAPSHOT, memory_mb=128)
            order["spec"]["snapshot_manifest"] = stored.body["manifest"]
            await done(there, Verb.SANDBOX_PROVISION, order)
            assert await said(there, "two", "cat /dev/shm/mind /srv/disk") == "mind\ndisk"
            await said(there, "two", "cat /bin/* > /dev/null")
            for rig, name in ((here, "one"), (there, "two")):
                await done(rig, Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(name), "grace_s": 0})

    run(scenario())


def test_a_commit_of_a_machine_is_its_disk_as_its_processes_wrote_it(machines: Rig, run) -> None:
    rig = machines

    async def scenario() -> None:
        async with rig.life():
            building(rig, {})
            target = {"sandbox_id": await rig.up(memory_mb=128)}
            await said(rig, "one", "mkdir -p /srv; echo kept > /srv/kept")
            made = await done(rig, Verb.SANDBOX_COMMIT, {**target, "disk_mb": 64})
            assert await said(rig, "one", "echo later > /srv/later; cat /srv/kept") == "kept"
            there = await rig.node.roots.list()
            assert (there.roots, there.snapshots) == ({rig.sandbox()}, frozenset())
            order = rig.provision("two", memory_mb=128)
            sizes = {"sha256": made.body["sha256"], "size_bytes": made.body["size_bytes"]}
            order["spec"]["artifact"] = {"artifact_id": identifier(made.body["digest"]), **sizes}
            await done(rig, Verb.SANDBOX_PROVISION, order)
            assert await said(rig, "two", "cat /srv/*") == "kept"
            await done(rig, Verb.SANDBOX_PAUSE, target)
            refused = await rig.tell(Verb.SANDBOX_COMMIT, {**target, "disk_mb": 64})
            assert refused.error.code == "sandbox.paused"
            for name in ("one", "two"):
                await done(rig, Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(name), "grace_s": 0})

    run(scenario())


def test_an_agent_that_died_during_a_snapshot_leaves_a_machine_that_goes_on(machines: Rig, run) -> None:
    rig = machines

    async def scenario() -> None:
        async with rig.life(orderly=False):
            await rig.up(memory_mb=128)
            handle = rig.node.handle(rig.node.get(rig.sandbox()))
            await rig.driver.pause(handle)  # as a snapshot does, without the record saying so
        async with rig.life():
            assert await said(rig, "one", "echo on") == "on"
            await done(rig, Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox(), "grace_s": 0})
            assert await rig.left() == {}

    run(scenario())
