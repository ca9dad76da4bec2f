"""A whole agent on a real bus: images become artifacts, output becomes log, and an end can end sandboxes too."""

from __future__ import annotations

from support.agents import AgentProcess
from support.images import make_pki
from support.waiting import eventually

from agents.images import fingerprint
from agents.images.compose import compose
from bus import logs, objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.nodes.orders import Observation, ReportKind, Verb

ARTIFACT = "rfs-" + "7" * 24


def test_an_image_becomes_an_artifact_once(installed, run, tmp_path):
    async def scenario():
        composed = compose(tmp_path / "image")
        job = {"process": "job", "process_id": "j1", "key": "j1"}
        async with installed() as place, AgentProcess(place, "sim"):
            resolved = await place.tell(Verb.IMAGE_RESOLVE, {"image": composed.reference}, **job)
            assert (resolved.kind, resolved.body["digest"]) == (ReportKind.DONE, composed.digest)
            body = {"artifact_id": ARTIFACT, "image": composed.reference, "digest": composed.digest, "disk_mb": 64}
            built = await place.tell(Verb.ARTIFACT_BUILD, body, within=60, **job)
            assert built.kind is ReportKind.DONE, built
            assert built.body["image_config"]["Cmd"] == resolved.body["config"]["Cmd"]
            phases = [report.body["phase"] for report in place.reports if report.kind is ReportKind.PROGRESS]
            assert phases
            assert set(phases) <= {"PULLING", "UNPACKING", "BUILDING_EXT4"}
            assert await objects.check(place.nc, ARTIFACTS_BUCKET, ARTIFACT, built.body["sha256"])
            again = await place.tell(Verb.ARTIFACT_BUILD, body, **job)
            assert again.body == built.body
            assert len(phases) == len([r for r in place.reports if r.kind is ReportKind.PROGRESS]), "nothing was built"
            await objects.delete(place.nc, ARTIFACTS_BUCKET, ARTIFACT)
            await place.tell(Verb.ARTIFACT_BUILD, body, within=60, **job)
            assert await objects.check(place.nc, ARTIFACTS_BUCKET, ARTIFACT, built.body["sha256"]), "what is lost is built again"
            unknown = await place.tell(Verb.IMAGE_RESOLVE, {"image": f"oci:{tmp_path}/nothing"}, **job)
            assert (unknown.kind, unknown.error.code) == (ReportKind.FAILED, "image.not-found")

    run(scenario())


def test_the_egress_ca_of_the_node_is_told_and_baked_in_and_no_other_one(installed, run, tmp_path):
    ca = make_pki(tmp_path).ca.read_bytes()

    async def scenario():
        composed = compose(tmp_path / "image")
        job = {"process": "job", "process_id": "j1", "key": "j1"}
        async with installed() as place, AgentProcess(place, "sim"):
            asked = {"image": composed.reference, "egress_ca": True}
            missing = await place.tell(Verb.IMAGE_RESOLVE, asked, **job)
            assert missing.error.code == "egress-ca.missing"
            (place.dir / "egress-ca.pem").write_bytes(ca)
            told = (await place.tell(Verb.IMAGE_RESOLVE, asked, **job)).body["egress_ca"]
            assert told == fingerprint(ca)
            body = {"artifact_id": ARTIFACT, "image": composed.reference, "digest": composed.digest, "disk_mb": 64, "egress_ca": True}
            changed = await place.tell(Verb.ARTIFACT_BUILD, {**body, "egress_ca_sha256": "0" * 64}, **job)
            assert changed.error.code == "egress-ca.changed"
            built = await place.tell(Verb.ARTIFACT_BUILD, {**body, "egress_ca_sha256": told}, within=60, **job)
            assert built.kind is ReportKind.DONE, built

    run(scenario())


async def output(place, sandbox, stream, least):
    """What the bus has of a stream, once it has at least so many bytes."""
    said = b"".join([chunk.data async for chunk in logs.read(place.nc, "default", sandbox) if chunk.stream == stream])
    return said if len(said) >= least else b""


def test_output_becomes_log(installed, run):
    async def scenario():
        async with installed() as place, AgentProcess(place, "sim"):
            body = place.provision("one", cmd=["sh", "-c", "echo first; echo second; sleep 1000"])
            await place.tell(Verb.SANDBOX_PROVISION, body)
            await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": body["sandbox_id"], "grace_s": 0})
            sandbox = body["sandbox_id"]
            assert await eventually(lambda: output(place, sandbox, "stdout", len(b"first\nsecond\n"))) == b"first\nsecond\n"
            assert b"running, driver sim" in await eventually(lambda: output(place, sandbox, "runtime", 10))

    run(scenario())


def test_what_befell_a_sandbox_is_said_in_its_own_log(installed, run):
    """By its node, also when nothing of it is left (reference/miren-sandbox.md §8.2, scenario 18 and 20)."""

    async def scenario():
        async with installed() as place, AgentProcess(place, "process", "--port-wait", "0.2"):
            stubborn = place.provision("stubborn", cmd=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
            await place.tell(Verb.SANDBOX_PROVISION, stubborn)
            await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": stubborn["sandbox_id"], "grace_s": 0.2})
            said = await eventually(lambda: output(place, stubborn["sandbox_id"], "runtime", 80))
            assert b"[strandline] killed: it did not end within 0." in said
            deaf = place.provision("deaf", probe_port=8080)
            refused = await place.tell(Verb.SANDBOX_PROVISION, deaf)
            assert refused.kind is ReportKind.FAILED
            said = await eventually(lambda: output(place, deaf["sandbox_id"], "runtime", 10))
            assert said.startswith(b"[strandline] not started: ready: nothing listens on port 8080 after 0.2 s")
            unknown = place.provision("unknown")
            unknown["spec"]["artifact"] = {"artifact_id": "rfs-" + "9" * 24, "sha256": "9" * 64, "size_bytes": 1}
            assert (await place.tell(Verb.SANDBOX_PROVISION, unknown)).kind is ReportKind.FAILED
            said = await eventually(lambda: output(place, unknown["sandbox_id"], "runtime", 10))
            assert said.startswith(b"[strandline] not started: artifact: ")

    run(scenario())


def test_an_end_can_end_sandboxes_too(installed, run):
    async def scenario():
        async with installed() as place:
            async with AgentProcess(place, "sim", "--stop-sandboxes") as agent:
                body = place.provision("one")
                await place.tell(Verb.SANDBOX_PROVISION, body)
                await agent.stop()
                assert agent.process.returncode == 0, agent.log()
            exited = await place.said(lambda report: report.verb == Observation.SANDBOX_EXITED)
            assert exited.body["exit_code"] == 143
            await place.said(lambda report: report.verb == Observation.NODE_BYE)

    run(scenario())
