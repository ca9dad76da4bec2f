"""Templates and artifacts on a node: the bytes are right, the boot is real, nothing in use is taken away."""

from __future__ import annotations

import os

from support.local_node import SNAPSHOT

from domain.nodes.orders import ReportKind, Verb

TEMPLATE = "tpl-" + "3" * 24


def test_bytes_are_fetched_once_and_read_again_when_distributed(rig, run):
    async def scenario():
        async with rig.life():
            body = {"template_id": TEMPLATE, "artifact": rig.artifact.model_dump()}
            for _ in range(2):
                assert (await rig.tell(Verb.REPLICA_DISTRIBUTE, body)).kind is ReportKind.DONE
            assert rig.fetched == 1
            path = rig.node.cache.path(rig.artifact.artifact_id)
            stat = path.stat()
            with path.open("r+b") as file:
                file.seek(5000)
                file.write(b"damage")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            assert (await rig.tell(Verb.REPLICA_DISTRIBUTE, body)).kind is ReportKind.DONE
            assert rig.fetched == 2
            assert path.read_bytes() == rig.ext4.read_bytes()

    run(scenario())


def test_a_file_that_changed_is_fetched_again(rig, run):
    async def scenario():
        async with rig.life():
            await rig.up()
            rig.node.cache.path(rig.artifact.artifact_id).write_bytes(b"short")
            await rig.up("two")
            assert rig.fetched == 2

    run(scenario())


def test_a_template_is_proved_by_a_boot_of_its_own(rig, run):
    async def scenario():
        async with rig.life():
            body = {"template_id": TEMPLATE, "artifact": rig.artifact.model_dump(), "recipe": {"cmd": ["sleep", "10"]}}
            report = await rig.tell(Verb.REPLICA_PREPARE, body)
            assert report.body == {"versions": {"guest_image": "1", "agent": "2", "kernel": "3"}, "driver": "sim"}
            assert [said.body["phase"] for said in rig.reports if said.kind is ReportKind.PROGRESS] == ["SNAPSHOTTING"]
            assert await rig.left() == {}
            body["recipe"] = {"cmd": ["there-is-no-such-program"]}
            report = await rig.tell(Verb.REPLICA_PREPARE, body)
            assert (report.kind, report.error.code) == (ReportKind.FAILED, "sandbox.no-such-program")
            body["recipe"], body["driver"] = {}, "oci"
            report = await rig.tell(Verb.REPLICA_PREPARE, body)
            assert (report.error.code, report.error.details) == ("driver.unavailable", {"available": ["sim"]})
            assert await rig.left() == {}

    run(scenario())


def test_an_artifact_goes_when_nothing_uses_it(rig, run):
    async def scenario():
        async with rig.life():
            artifact = rig.artifact.artifact_id
            prepare = {"template_id": TEMPLATE, "artifact": rig.artifact.model_dump(), "recipe": {"cmd": ["sleep", "10"]}}
            await rig.tell(Verb.REPLICA_PREPARE, prepare)
            await rig.tell(Verb.REPLICA_PREPARE, {**prepare, "template_id": "tpl-" + "4" * 24})
            await rig.tell(Verb.REPLICA_REMOVE, {"template_id": TEMPLATE, "artifact_id": artifact})
            assert rig.node.cache.artifacts() == {artifact}, "another template lies over it"
            await rig.up()
            await rig.tell(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": rig.sandbox(), "snapshot_id": SNAPSHOT})
            report = await rig.tell(Verb.ARTIFACT_REMOVE, {"artifact_id": artifact})
            assert (report.error.code, report.error.retryable) == ("artifact.in-use", True)
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": rig.sandbox()})
            assert (await rig.tell(Verb.ARTIFACT_REMOVE, {"artifact_id": artifact})).error.code == "artifact.in-use"
            await rig.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})
            assert (await rig.tell(Verb.ARTIFACT_REMOVE, {"artifact_id": artifact})).kind is ReportKind.DONE
            assert rig.node.cache.artifacts() == set()
            assert (await rig.node.roots.list()).artifacts == set()

    run(scenario())
