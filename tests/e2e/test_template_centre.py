"""The template centre on a real runtime, as a caller of the bus sees it: every state and phase, each when the log had got that far."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from e2e.test_contract import PARAMETERS, Stranger
from support.installation import Running, compose_image, up
from support.waiting import eventually

MISSING = "00000000-0000-5000-8000-000000000000"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("driver", PARAMETERS)
def test_every_state_is_seen_and_every_redo_made(tmp_path: Path, driver: str) -> None:
    with up(tmp_path / "state", "--driver", driver) as running:
        asyncio.run(everything(running, compose_image(tmp_path / "image")))


async def everything(running: Running, image: str) -> None:
    connect = json.loads((running.dir / "connect.json").read_text())
    options = {"user_credentials": connect["creds"]} if connect["creds"] else {}
    nc = await nats.connect(connect["url"], inbox_prefix=connect["inbox_prefix"].encode(), **options)
    s = Watcher(nc)
    try:
        made = await s.cmd("template.create", image=image, alias="demo", memory_mb=64, env={"COLOUR": "blue"}, wait_s=60)
        await the_template(s, made)
        await redone(s, made["template_id"], image)
        sandbox, snapshot = await its_snapshot(s)
        await its_ref(s, sandbox, snapshot)
        await deleted(s, sandbox, snapshot)
        await storage(s)
        await its_end(s, made["template_id"])
        await written(nc, made["template_id"])
    finally:
        await nc.close()


class Watcher(Stranger):
    async def seen(self, view: str, kind: str, identifier: str, field: str, **where: Any) -> list[Any]:
        """The values that a field of an item had after each commit of the aggregate; one after the other, repeats left out."""
        events = await self.qry("events", "read", type=kind, id=identifier, limit=1000)
        where = where or {"id": identifier}
        verb = "get" if "id" in where else "list"
        values: list[Any] = []
        for seq in dict.fromkeys(event["seq"] for event in events):
            reply = await self.reply(f"qry.default.{view}.{verb}", as_of=seq, **where)
            values += [item[field] for item in reply.get("items", ())]
        return list(dict.fromkeys(values))

    async def ended(self, job: str) -> dict[str, Any] | None:
        [item] = await self.qry("jobs", "get", id=job)
        return None if item["status"] in {"PENDING", "RUNNING"} else item

    async def is_released(self, sandbox: str) -> bool:
        return (await self.reply("qry.default.runtime-refs.get", id=sandbox))["items"][0]["status"] == "RELEASED"

    async def reply(self, name: str, **body: Any) -> dict[str, Any]:
        message = await self._nc.request(f"strand.v1.{name}", json.dumps(body).encode(), timeout=30)
        return dict(json.loads(message.data))


async def the_template(s: Watcher, made: dict[str, Any]) -> None:
    """What it is, what it is made of, and how its job came to its end."""
    template, job = made["template_id"], made["job_id"]
    [item] = await s.qry("templates", "list", status="READY")
    assert (item["template_id"], item["recipe"]["env"]["COLOUR"], item["recipe"]["memory_mb"]) == (template, "blue", 64)
    [artifact] = await s.qry("artifacts", "get", id=item["artifact_id"])
    assert (artifact["artifact_id"], artifact["status"], len(artifact["sha256"])) == (item["artifact_id"], "READY", 64)
    assert artifact["size_bytes"] > 0
    assert await s.seen("templates", "template", template, "status") == ["PENDING", "READY"]
    assert await s.seen("jobs", "job", job, "status") == ["PENDING", "RUNNING", "READY"]
    assert await s.seen("jobs", "job", job, "resource_type") == ["template"]
    refused = await s.reply("qry.default.jobs.get", id=MISSING)
    assert refused["error"]["code"] == "job.not-found"


async def redone(s: Watcher, template: str, image: str) -> None:
    """Each mode, on a node that boots what it makes; a template that cannot boot fails there, and again."""
    for mode, nodes in (("ALL", []), ("NODES", ["node-1"])):
        job = (await s.cmd("template.redo", template=template, mode=mode, nodes=nodes, wait_s=60))["job_id"]
        [item] = await s.qry("jobs", "get", id=job)
        assert (item["operation"], item["status"], item["targets"]) == ("REDO", "READY", ["node-1"])
    error = await s.refused("template.redo", template=template, mode="FAILED_NODES", nodes=["node-1"])
    assert error["code"] == "template.no-failed-replicas"
    error = await s.refused("template.create", image=image, memory_mb=48, cmd=["/there-is-no-such-program"], wait_s=60)
    broken = error["details"]["template_id"]
    for attempt, (mode, nodes) in enumerate((("FAILED_ONLY", []), ("FAILED_NODES", ["node-1"])), start=2):
        error = await s.refused("template.redo", template=broken, mode=mode, nodes=nodes, wait_s=60)
        item = await eventually(partial(s.ended, error["details"]["job_id"]))  # a refusal does not say where in the log it stands
        assert (item["status"], item["attempt"], item["targets"]) == ("FAILED", attempt, ["node-1"])
    await s.cmd("template.delete", template=broken, wait_s=60)
    phases = await s.seen("replicas", "replica", f"{broken}_node-1", "phase", template_id=broken)
    assert phases == ["PENDING", "DISTRIBUTING", "DISTRIBUTED", "SNAPSHOTTING", "FAILED", "CLEANING"]


async def its_snapshot(s: Watcher) -> tuple[str, str]:
    """Taken, listed, and gone back to."""
    sandbox = (await s.cmd("sandbox.create", template="demo", wait_s=60))["sandbox_id"]
    taken = await s.cmd("snapshot.create", sandbox_id=sandbox, name="one", wait_s=60)
    snapshot = taken["snapshot_id"]
    assert await s.seen("snapshots", "snapshot", snapshot, "status") == ["CREATING", "READY"]
    [item] = await s.qry("snapshots", "list", origin_sandbox_id=sandbox, name="one")
    assert [item] == await s.qry("snapshots", "get", id=snapshot)
    assert (item["origin_node_id"], item["status"], item["runtime_refs"]) == ("node-1", "READY", [])
    [job] = await s.qry("jobs", "get", id=taken["job_id"])
    assert (job["operation"], job["resource_type"], job["resource_id"]) == ("SNAPSHOT_CREATE", "snapshot", snapshot)
    back = await s.cmd("sandbox.rollback", sandbox_id=sandbox, snapshot_id=snapshot, wait_s=60)
    assert await s.seen("jobs", "job", back["job_id"], "phase") == ["ROLLBACK_PREPARING", "ROLLBACK_DRIVING", "READY"]
    return sandbox, snapshot


async def its_ref(s: Watcher, sandbox: str, snapshot: str) -> None:
    """Who runs on it, and that whoever ends does so no more: told by the node that saw it end."""
    child = (await s.cmd("sandbox.create", snapshot_id=snapshot, wait_s=60))["sandbox_id"]
    [ref] = await s.qry("runtime-refs", "get", id=child)
    assert (ref["snapshot_id"], ref["node_id"], ref["status"], ref["generation"]) == (snapshot, "node-1", "ACTIVE", 0)
    active = await s.qry("runtime-refs", "list", snapshot_id=snapshot, status="ACTIVE")
    assert sorted(ref["sandbox_id"] for ref in active) == sorted([sandbox, child])
    [item] = await s.qry("snapshots", "get", id=snapshot)
    assert (item["runtime_ref_count"], item["runtime_refs"]) == (2, sorted([sandbox, child]))
    await s.cmd("sandbox.delete", sandbox_id=child, wait_s=60)
    await eventually(lambda: s.is_released(child))
    [item] = await s.qry("snapshots", "get", id=snapshot)
    assert item["runtime_refs"] == [sandbox]


async def deleted(s: Watcher, sandbox: str, snapshot: str) -> None:
    """Nobody finds it any more."""
    await s.cmd("sandbox.delete", sandbox_id=sandbox, wait_s=60)
    await s.cmd("snapshot.delete", snapshot_id=snapshot, wait_s=60)
    assert (await s.reply("qry.default.snapshots.get", id=snapshot, min_seq=s.seq))["error"]["code"] == "snapshot.not-found"


async def storage(s: Watcher) -> None:
    """How full the node's disk is, and what that allows."""
    [item] = await s.qry("storage", "list")
    full = item["usage_pct"]
    mode = next(word for limit, word in ((70, "healthy"), (85, "warn"), (95, "reject"), (101, "delete_only")) if full < limit)
    assert (item["node_id"], item["mode"], item["writable"]) == ("node-1", mode, mode in {"healthy", "warn"})


async def its_end(s: Watcher, template: str) -> None:
    """Nobody sees it any more; those who look back do."""
    await s.cmd("template.delete", template=template, wait_s=60)
    assert await s.qry("templates", "list") == []
    assert await s.seen("templates", "template", template, "status") == ["PENDING", "READY", "DELETING"]


async def written(nc: Any, template: str) -> None:
    """As it stands in the log: every event says by which schema it is to be read."""
    subscription = await nc.jetstream().subscribe(f"strand.evt.default.template.{template}", ordered_consumer=True)
    seen: list[str] = []
    while "template.deleted" not in seen:
        commit = json.loads((await subscription.next_msg(timeout=10)).data)
        assert {event["schema"] for event in commit["events"]} == {1}
        seen += [event["type"] for event in commit["events"]]
    await subscription.unsubscribe()
