"""A caller who knows contract.md and has a NATS client, and nothing else of ours: plain subjects, plain JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import nats
import pytest
from support.installation import compose_image, up

PARAMETERS = [
    pytest.param("process", id="process"),
    pytest.param("oci", id="oci", marks=pytest.mark.root),
]

PHASES = [
    *("PULLING", "UNPACKING", "BUILDING_EXT4", "GENERATING_JSON"),
    *("DISTRIBUTING", "CREATING_TEMPLATE", "SNAPSHOTTING", "REGISTERING", "READY"),
]


class Stranger:
    """Sends requests and reads replies."""

    def __init__(self, nc: Any) -> None:
        self._nc = nc
        self.seq = 0

    async def cmd(self, name: str, /, **body: Any) -> dict[str, Any]:
        reply = json.loads((await self._nc.request(f"strand.v1.cmd.default.{name}", json.dumps(body).encode(), timeout=90)).data)
        assert reply["ok"], (name, reply)
        self.seq = max(self.seq, reply["seq"])
        return reply["result"]

    async def refused(self, name: str, /, **body: Any) -> dict[str, Any]:
        message = await self._nc.request(f"strand.v1.cmd.default.{name}", json.dumps(body).encode(), timeout=90)
        reply = json.loads(message.data)
        assert not reply["ok"]
        assert message.headers["Nats-Service-Error"]
        return reply["error"]

    async def qry(self, view: str, verb: str, **body: Any) -> list[dict[str, Any]]:
        asked = {"min_seq": self.seq, **body}
        reply = json.loads((await self._nc.request(f"strand.v1.qry.default.{view}.{verb}", json.dumps(asked).encode(), timeout=30)).data)
        assert reply["ok"], (view, verb, reply)
        return reply["items"]

    async def run(self, sandbox: str, script: str) -> tuple[int, str]:
        done = await self.cmd("sandbox.exec", sandbox_id=sandbox, cmd=["/bin/sh", "-c", script])
        return done["exit_code"], base64.b64decode(done["stdout"]).decode()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("driver", PARAMETERS)
def test_everything_can_be_done_with_a_nats_client(tmp_path: Path, driver: str) -> None:
    with up(tmp_path / "state", "--driver", driver) as running:
        asyncio.run(everything(json.loads((running.dir / "connect.json").read_text()), compose_image(tmp_path / "image")))


async def everything(connect: dict[str, Any], image: str) -> None:
    options = {"user_credentials": connect["creds"]} if connect["creds"] else {}
    nc = await nats.connect(connect["url"], inbox_prefix=connect["inbox_prefix"].encode(), **options)
    s = Stranger(nc)
    try:
        template = await s.cmd("template.create", image=image, alias="demo", memory_mb=64, wait_s=60)
        [item] = await s.qry("templates", "get", id="demo")
        assert (item["template_id"], item["status"], item["replicas"]["ready"]) == (template["template_id"], "READY", 1)
        [job] = await s.qry("jobs", "get", id=template["job_id"])
        assert (job["status"], job["progress"], job["operation"]) == ("READY", 100, "CREATE")

        told = await s.qry("events", "read", type="job", id=template["job_id"], limit=1000)
        assert list(dict.fromkeys(event["data"]["phase"] for event in told if "phase" in event["data"])) == PHASES

        sandbox = (await s.cmd("sandbox.create", template="demo", labels={"team": "tide"}, wait_s=60))["sandbox_id"]
        [item] = await s.qry("sandboxes", "get", id=sandbox)
        assert (item["state"], item["labels"]) == ("RUNNING", {"team": "tide"})
        assert await s.run(sandbox, "echo here > /root-file; cat /root-file; exit 7") == (7, "here\n")

        snapshot = (await s.cmd("snapshot.create", sandbox_id=sandbox, name="one", wait_s=60))["snapshot_id"]
        await s.run(sandbox, "rm /root-file; echo later > /other")
        assert (await s.cmd("sandbox.rollback", sandbox_id=sandbox, snapshot_id=snapshot, wait_s=60))["generation"] == 1
        assert await s.run(sandbox, "cat /root-file; ls /other 2>/dev/null") == (1, "here\n")

        clones = (await s.cmd("sandbox.clone", sandbox_id=sandbox, count=2, wait_s=60))["sandbox_ids"]
        assert [await s.run(clone, "cat /root-file") for clone in clones] == [(0, "here\n")] * 2

        [row] = [r for r in await s.qry("compat-matrix", "list") if r["template_id"] == template["template_id"]]
        assert (row["overall"], [cell["compat"] for cell in row["nodes"]]) == ("OK", ["OK"])
        assert (await s.qry("compat-matrix", "summary"))[0]["stale_templates"] == 0

        await follow(nc, sandbox)
        error = await s.refused("template.delete", template="demo")
        assert (error["code"], error["retryable"]) == ("template.in-use", False)
        for each in [sandbox, *clones]:
            assert (await s.cmd("sandbox.delete", sandbox_id=each, wait_s=60))["state"] == "DEAD"
        await s.cmd("snapshot.delete", snapshot_id=snapshot, wait_s=60)
        await s.cmd("template.delete", template="demo", wait_s=60)
        assert [r["state"] for r in await s.qry("sandboxes", "list")] == ["DEAD"] * 3
        trail = await s.qry("audit", "list", type="sandbox", id=sandbox)
        assert [row["events"][0] for row in trail[:2]] == ["sandbox.created", "sandbox.started"]
        assert trail[1]["actor"].startswith("node:")
        assert await s.qry("audit", "get", id=str(trail[0]["seq"])) == trail[:1]
        [verdict] = await s.qry("events", "verify")
        assert verdict["intact"] is True
    finally:
        await nc.close()


async def follow(nc: Any, sandbox: str) -> None:
    """The sandbox's life, straight from the stream."""
    subscription = await nc.jetstream().subscribe(f"strand.evt.default.sandbox.{sandbox}", ordered_consumer=True)
    seen: list[str] = []
    previous = "0" * 64
    while "sandbox.rolled-back" not in seen:
        commit = json.loads((await subscription.next_msg(timeout=10)).data)
        assert commit["prev"] == previous
        previous = commit["hash"]
        seen += [event["type"] for event in commit["events"]]
    assert seen[:2] == ["sandbox.created", "sandbox.started"]
    await subscription.unsubscribe()
