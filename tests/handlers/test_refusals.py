"""Every command of the contract, asked of what is not there and of what cannot do it now: the code, and whether it helps to ask again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from repo.tree import ROOT
from support.planes import ask
from support.waiting import eventually

from domain.kernel.command import MAX_BODY
from domain.kernel.errors import Refused
from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.plane import HANDLERS

CONTRACT = set(
    """
    template.not-found template.in-use template.attempt-in-progress template.no-ready-replica template.stale-needs-redo template.no-nodes
    template.duplicate template.no-failed-replicas template.cleanup-locator-missing snapshot.not-found snapshot.in-use storage.blocked
    sandbox.not-found sandbox.illegal-state sandbox.startup-failed sandbox.undo-blocked node.not-found node.offline capacity.exhausted
    command.invalid command.mismatch command.too-large bus.unavailable
    """.split()  # noqa: SIM905 - as the contract has it
)
ELSEWHERE = {
    "bus.unavailable": "tests/bus_services/test_endpoints.py",
    "template.stale-needs-redo": "tests/handlers/test_main_path.py",
}
"""Codes that tests of their own bring about."""

TPL, SB, SNAP = "tpl-" + "0" * 24, "sb-" + "a" * 20, "snap-" + "0" * 24
NOBODY: dict[str, tuple[dict[str, Any], str, bool]] = {
    "template.create": ({"image": "oci:/x", "nodes": ["nowhere"]}, "node.not-found", True),
    "template.commit": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "template.redo": ({"template": TPL, "mode": "ALL"}, "template.not-found", False),
    "template.adopt-baseline": ({"template": "no-such-alias"}, "template.not-found", False),
    "template.set-compat-policy": ({"template": TPL, "policy": "STRICT"}, "template.not-found", False),
    "template.delete": ({"template": TPL}, "template.not-found", False),
    "job.cancel": ({"job_id": "00000000-0000-5000-8000-000000000000"}, "job.not-found", False),
    "artifact.link": ({"artifact_id": "rfs-" + "0" * 24}, "artifact.not-served", False),
    "compat.rescan": ({"nodes": ["nowhere"]}, "node.not-found", False),
    "snapshot.create": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "snapshot.export": ({"snapshot_id": SNAP}, "snapshot.not-found", False),
    "snapshot.delete": ({"snapshot_id": SNAP}, "snapshot.not-found", False),
    "sandbox.create": ({"template": TPL}, "template.not-found", False),
    "sandbox.pause": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "sandbox.resume": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "sandbox.update-limits": ({"sandbox_id": SB, "pids": 64}, "sandbox.not-found", False),
    "sandbox.stop": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "sandbox.delete": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "sandbox.rollback": ({"sandbox_id": SB, "snapshot_id": SNAP}, "snapshot.not-found", False),
    "sandbox.clone": ({"sandbox_id": SB, "count": 1}, "sandbox.not-found", False),
    "sandbox.set-ttl": ({"sandbox_id": SB, "ttl_s": 5}, "sandbox.not-found", False),
    "sandbox.wait-port": ({"sandbox_id": SB, "port": 80}, "sandbox.not-found", False),
    "sandbox.exec": ({"sandbox_id": SB, "cmd": ["x"]}, "sandbox.not-found", False),
    "sandbox.abandon": ({"sandbox_id": SB}, "sandbox.not-found", False),
    "disk.create": ({"name": "data", "size_mb": 64, "node": "nowhere"}, "node.not-found", False),
    "disk.grow": ({"name": "none", "size_mb": 64}, "disk.not-found", False),
    "disk.snapshot": ({"name": "none", "snapshot": "then"}, "disk.not-found", False),
    "disk.delete-snapshot": ({"name": "none", "snapshot": "then"}, "disk.not-found", False),
    "disk.delete": ({"name": "none"}, "disk.not-found", False),
    "disk.release": ({"name": "none"}, "disk.not-found", False),
    "pool.set": ({"template": TPL, "desired": 1}, "template.not-found", False),
    "pool.delete": ({"template": TPL}, "template.not-found", False),
    "rollout.start": ({"nodes": ["nowhere"], "agent": "2"}, "node.not-found", False),
    "rollout.cancel": ({"rollout_id": "ro-" + "0" * 24}, "rollout.not-found", False),
    "node.evict": ({"node_id": "nowhere"}, "node.not-found", False),
    "node.cordon": ({"node_id": "nowhere"}, "node.not-found", False),
    "node.uncordon": ({"node_id": "nowhere"}, "node.not-found", False),
    "node.drain": ({"node_id": "nowhere"}, "node.not-found", False),
    "node.sweep": ({"node_id": "nowhere"}, "node.not-found", False),
    "node.configure": ({"node_id": "nowhere"}, "node.not-found", False),
}
"""Of what is not there: body, code, retryable."""

NOW: list[tuple[str, str, str, bool]] = [
    ("sandbox.create", "template=failed", "template.no-ready-replica", False),
    ("sandbox.create", "template=pending", "template.no-ready-replica", True),
    ("sandbox.create", "template=base memory_mb=1000000", "capacity.exhausted", True),
    ("sandbox.create", "template=base node=nowhere", "node.not-found", False),
    ("sandbox.create", "template=base node=node-off", "node.offline", True),
    ("sandbox.create", "template=base node=node-evicted", "node.evicted", False),
    ("sandbox.create", "snapshot_id=tombstone", "snapshot.not-found", False),
    ("sandbox.create", "snapshot_id=creating", "snapshot.illegal-state", False),
    ("sandbox.create", "snapshot_id=snapshot node=node-off", "snapshot.not-on-node", False),
    ("template.redo", "template=pending mode=ALL", "template.attempt-in-progress", True),
    ("template.redo", "template=base mode=FAILED_ONLY", "template.no-failed-replicas", False),
    ("template.redo", "template=failed mode=ALL", "template.not-pulled", False),
    ("template.delete", "template=pending", "template.attempt-in-progress", True),
    ("template.delete", "template=base", "template.in-use", False),
    ("template.commit", "sandbox_id=dead", "sandbox.illegal-state", False),
    ("sandbox.pause", "sandbox_id=dead", "sandbox.illegal-state", False),
    ("sandbox.resume", "sandbox_id=dead", "sandbox.illegal-state", False),
    ("sandbox.update-limits", "sandbox_id=running memory_mb=32", "sandbox.unsupported", False),
    ("sandbox.rollback", "sandbox_id=dead snapshot_id=snapshot", "sandbox.illegal-state", False),
    ("sandbox.rollback", "sandbox_id=paused snapshot_id=snapshot", "snapshot.foreign", False),
    ("sandbox.rollback", "sandbox_id=running snapshot_id=tombstone", "snapshot.not-found", False),
    ("sandbox.clone", "sandbox_id=dead count=1", "sandbox.illegal-state", False),
    ("sandbox.set-ttl", "sandbox_id=dead ttl_s=5", "sandbox.illegal-state", False),
    ("sandbox.exec", "sandbox_id=dead cmd=x", "sandbox.illegal-state", False),
    ("sandbox.exec", "sandbox_id=paused cmd=x", "sandbox.illegal-state", False),
    ("sandbox.abandon", "sandbox_id=running", "sandbox.undo-blocked", False),
    ("pool.delete", "template=base", "pool.not-found", False),
    ("snapshot.create", "sandbox_id=dead", "sandbox.illegal-state", False),
    ("snapshot.create", "sandbox_id=snapshotting", "sandbox.illegal-state", True),
    ("snapshot.delete", "snapshot_id=creating", "snapshot.illegal-state", False),
    ("node.cordon", "node_id=node-evicted", "node.evicted", False),
    ("node.uncordon", "node_id=node-evicted", "node.evicted", False),
    ("node.drain", "node_id=node-evicted", "node.evicted", False),
    ("node.configure", "node_id=node-evicted", "node.evicted", False),
]
"""Of what cannot do it now. The words are names of what :func:`a_day` has made."""

FULL = [
    ("snapshot.create", "sandbox_id=running", "storage.blocked", True),
    ("sandbox.rollback", "sandbox_id=running snapshot_id=snapshot", "storage.blocked", True),
    ("sandbox.clone", "sandbox_id=running count=1", "storage.blocked", True),
    ("template.commit", "sandbox_id=running", "storage.blocked", True),
]
"""On a node whose disk is nearly full (reference/cubesandbox.md §5.7)."""


async def a_day(place) -> dict[str, str]:
    """One of everything, in the states that somebody can meet it in."""
    made = {"base": await place.template(alias="base")}
    for name in ("running", "paused", "dead", "snapshotting"):
        made[name] = await place.sandbox("base")
    await place.do("sandbox.pause", {"sandbox_id": made["paused"], "wait_s": 10})
    await place.do("sandbox.delete", {"sandbox_id": made["dead"], "wait_s": 10})
    for name in ("snapshot", "tombstone"):
        made[name] = (await place.do("snapshot.create", {"sandbox_id": made["running"], "wait_s": 10}))["snapshot_id"]
    await place.do("snapshot.delete", {"snapshot_id": made["tombstone"], "wait_s": 10})
    for node in ("node-off", "node-evicted"):
        await place.do("node.enroll", {"node_id": node})
    await place.do("node.evict", {"node_id": "node-evicted"})
    place.node.refuse = lambda order: Failure(code="image.not-found", message="none") if order.verb == Verb.IMAGE_RESOLVE else None
    with pytest.raises(Refused) as failed:
        await place.template(alias="never")
    made["failed"] = failed.value.details["template_id"]
    place.node.hold = lambda order: order.verb in {Verb.IMAGE_RESOLVE, Verb.SANDBOX_SNAPSHOT}
    made["pending"] = (await place.do("template.create", {"image": "oci:/pending"}))["template_id"]
    made["creating"] = (await place.do("snapshot.create", {"sandbox_id": made["snapshotting"]}))["snapshot_id"]
    await eventually(lambda: bool(place.plane.control.fleet.nodes["node-evicted"].evicted))
    assert (await place.get(Sandbox, made["dead"])).state is SandboxState.DEAD
    assert (await place.get(Snapshot, made["tombstone"])).state is SnapshotState.GONE
    return made


def body(text: str, made: dict[str, str]) -> dict[str, Any]:
    fields = dict(word.split("=") for word in text.split())
    told = {name: int(value) if value.isdigit() else made.get(value, value) for name, value in fields.items()}
    return {**told, "cmd": [told["cmd"]]} if "cmd" in told else told


async def refusal(place, name: str, asked: dict[str, Any]) -> tuple[str, bool]:
    try:
        return str(await place.do(name, asked)), False
    except Refused as refused:
        return refused.code, refused.retryable


def test_what_is_not_there_is_not_found(at) -> None:
    async def test(place) -> None:
        before = await place.plane.control.store.position()
        answers = {name: await refusal(place, name, asked) for name, (asked, _, _) in NOBODY.items()}
        assert answers == {name: (code, retryable) for name, (_, code, retryable) in NOBODY.items()}
        for name in served():
            assert await refusal(place, name, {"nonsense": 1}) == ("command.invalid", False)
        assert await place.plane.control.store.position() == before, "a refusal changes nothing"

    at(test)


def test_what_cannot_be_done_now_is_refused_by_its_name(at) -> None:
    async def test(place) -> None:
        made = await a_day(place)
        before = await place.plane.control.store.position()
        answers = [(name, text, *await refusal(place, name, body(text, made))) for name, text, _, _ in NOW]
        assert answers == NOW
        await place.node.hello(storage_pct=90.0)
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].storage_mode == "reject")
        answers = [(name, text, *await refusal(place, name, body(text, made))) for name, text, _, _ in FULL]
        assert answers == FULL
        types = {e["type"] for c in await place.plane.control.store.read_all(before) for e in c.events}
        assert types <= {"node.storage-mode-changed", "node.described"}, "a refusal changes nothing"

    at(test)


def test_failed_starts_repeats_and_floods_are_refused_by_their_names(at) -> None:
    async def test(place) -> None:
        template = await place.template()
        place.node.refuse = lambda order: (
            Failure(code="driver.unavailable", message="none") if order.verb == Verb.SANDBOX_PROVISION else None
        )
        assert await refusal(place, "sandbox.create", {"template": template, "wait_s": 10}) == ("sandbox.startup-failed", False)
        await ask(place.plane, "node.enroll", {"node_id": "node-1"}, "again")
        for asked, code in (({"node_id": "node-2"}, "command.mismatch"), ({"note": "x" * MAX_BODY}, "command.too-large")):
            with pytest.raises(Refused) as refused:
                await ask(place.plane, "node.enroll", asked, "again")
            assert (refused.value.code, refused.value.retryable) == (code, False)
        await place.do("node.evict", {"node_id": "node-1"})
        await eventually(lambda: not place.plane.control.fleet.healthy_nodes())
        assert await refusal(place, "template.create", {"image": "oci:/x"}) == ("template.no-nodes", True)

    at(test)


def served() -> set[str]:
    return {cls.wire_name() for cls in HANDLERS}


def test_every_command_is_asked_of_something_that_is_not_there() -> None:
    assert served() - set(NOBODY) == {"node.enroll", "artifact.collect"}, "the others name nothing that could be missing"


def test_every_code_of_the_contract_is_brought_about_or_said_to_be_impossible() -> None:
    here = {code for _, code, _ in NOBODY.values()} | {code for _, _, code, _ in NOW + FULL}
    here |= {"sandbox.startup-failed", "command.invalid", "command.mismatch", "command.too-large", "template.no-nodes"}
    text = (ROOT / "docs" / "bus.md").read_text(encoding="utf-8").partition("cannot be answered here:")[2].partition("\n### ")[0]
    impossible = set(re.findall(r"^- `([a-z.-]+)`:", text, re.MULTILINE))
    assert impossible == CONTRACT - here - set(ELSEWHERE)
    assert all(code in (ROOT / path).read_text(encoding="utf-8") for code, path in ELSEWHERE.items())
