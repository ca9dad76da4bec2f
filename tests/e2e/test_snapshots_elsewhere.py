"""Snapshots that outlive their sandbox, their template and their node, with the drivers that run programs."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from support.images import layout
from support.installation import Running, compose_image, up
from support.waiting import eventually

from agents.drivers.crun import find
from domain.kernel.errors import Refused
from strandline import Strandline

OCI = pytest.param("oci", marks=[pytest.mark.root, pytest.mark.skipif(find("crun") is None, reason="crun is not installed")])
PROCESS = pytest.param("process", marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"))
WRITE = "echo kept > /kept; mkdir /data; head -c 3000000 /dev/urandom > /data/big; rm -f /etc/hostname; busybox sha256sum /data/big"
READ = "cat /kept; ls /etc/hostname 2>/dev/null; busybox sha256sum /data/big"


@pytest.fixture(scope="module", params=[OCI, PROCESS, "sim"])
def running(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str, str]]:
    """Two nodes of one driver, and the image that a template is made from."""
    base = tmp_path_factory.mktemp("elsewhere")
    driver = request.param
    image = layout(base / "image", lambda layer: layer.file("etc/hostname", b"x")) if driver == "sim" else compose_image(base / "image")
    with up(base / "state", "--driver", driver, "--nodes", "2") as made:
        yield made, driver, image


async def said(s: Strandline, sandbox: str, script: str) -> str:
    done = await s.sandboxes.exec(sandbox, ["/bin/sh", "-c", script])
    return base64.b64decode(done.stdout).decode()


async def template(s: Strandline, image: str, alias: str, driver: str, *nodes: str) -> None:
    """One that is ready, on ``nodes`` alone if any are named."""
    made = await s.templates.create(image, alias=alias, driver=driver, nodes=nodes)
    assert (await s.jobs.wait(made.job_id)).status == "READY"


async def snapshot(s: Strandline, sandbox: str, **more: Any) -> str:
    """The id of one that is taken."""
    taken = await s.snapshots.create(sandbox, **more)
    done = await s.jobs.wait(taken.job_id)
    assert (done.operation, done.status, done.resource_id) == ("SNAPSHOT_CREATE", "READY", taken.snapshot_id)
    return str(taken.snapshot_id)


@pytest.mark.timeout(120)
def test_a_snapshot_outlives_its_sandbox_its_template_and_its_node(running: tuple[Running, str, str]) -> None:
    """Deleting a template never breaks the snapshots that were taken from it; evicting a node not those that are stored."""
    installation, driver, image = running

    async def scenario() -> None:
        async with Strandline.connect(installation.dir) as s:
            await template(s, image, "base", driver)
            box = await s.sandboxes.create("base", cmd=["sleep", "1000"], node="node-1", wait_s=30)
            before = "" if driver == "sim" else await said(s, box.sandbox_id, WRITE)
            taken = await snapshot(s, box.sandbox_id, name="kept", replicate=True)
            stored = await s.snapshots.export(taken, wait_s=30)
            assert stored.status == "stored"
            await s.sandboxes.delete(box.sandbox_id, wait_s=30)
            await s.templates.delete("base", wait_s=30)
            with pytest.raises(Refused, match="base"):
                await s.sandboxes.create("base")

            for node in ("node-1", "node-2"):
                again = await s.sandboxes.create(snapshot_id=taken, cmd=["sleep", "1000"], node=node, wait_s=30)
                assert again.node_id == node
                if driver != "sim":
                    assert await said(s, again.sandbox_id, READ) == f"kept\n{before}"
            await s.nodes.evict("node-1")

            async def only_there() -> bool:
                return (await s.snapshots.get(taken)).nodes == ["node-2"]

            await eventually(only_there, within=20)
            last = await s.sandboxes.create(snapshot_id=taken, cmd=["sleep", "1000"], wait_s=30)
            assert last.node_id == "node-2"
            seen = await s.snapshots.get(taken)
            assert (seen.status, seen.stored["status"]) == ("READY", "stored")

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_a_sandbox_goes_back_to_a_stored_snapshot_that_its_node_has_lost(running: tuple[Running, str, str]) -> None:
    """By hand: somebody removes it from the node's disk."""
    installation, driver, image = running

    async def scenario() -> None:
        async with Strandline.connect(installation.dir) as s:
            await template(s, image, "again", driver, "node-2")
            box = await s.sandboxes.create("again", cmd=["sleep", "1000"], node="node-2", wait_s=30)
            before = "" if driver == "sim" else await said(s, box.sandbox_id, WRITE)
            taken = await snapshot(s, box.sandbox_id, replicate=True)
            await s.snapshots.export(taken, wait_s=30)
            await asyncio.to_thread(shutil.rmtree, installation.dir / "nodes" / "node-2" / "storage" / "snapshots" / taken)
            back = await s.sandboxes.rollback(box.sandbox_id, taken, wait_s=30)
            assert back.settled
            if driver != "sim":
                assert await said(s, box.sandbox_id, READ) == f"kept\n{before}"
            await s.sandboxes.delete(box.sandbox_id, wait_s=30)
            await s.snapshots.delete(taken, wait_s=30)

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_who_runs_on_a_snapshot_is_shown_until_it_ends(running: tuple[Running, str, str]) -> None:
    installation, driver, image = running

    async def scenario() -> None:
        async with Strandline.connect(installation.dir) as s:
            await template(s, image, "refs", driver, "node-2")
            box = await s.sandboxes.create("refs", cmd=["sleep", "1000"], wait_s=30)
            taken = await snapshot(s, box.sandbox_id, name="refs")
            child = await s.sandboxes.create(snapshot_id=taken, cmd=["sleep", "1000"], wait_s=30)
            (ref,) = (await s.query("runtime-refs", "list", {"snapshot_id": taken, "status": "ACTIVE"}))["items"]
            assert (ref["sandbox_id"], ref["node_id"], ref["generation"], ref["last_error"]) == (child.sandbox_id, "node-2", 0, None)
            seen = await s.snapshots.get(taken)
            assert (seen.runtime_refs, seen.model_dump()["runtime_ref_count"]) == ([child.sandbox_id], 1)
            assert [item.snapshot_id async for item in s.snapshots.list(name="refs")] == [taken]

            await s.sandboxes.delete(child.sandbox_id, wait_s=30)

            async def released() -> bool:
                (ref,) = (await s.query("runtime-refs", "get", {"id": child.sandbox_id}))["items"]
                return (ref["status"], ref["reason"]) == ("RELEASED", "sandbox destroyed") and ref["released_at"] is not None

            await eventually(released)
            assert (await s.snapshots.get(taken)).runtime_refs == []
            await s.snapshots.delete(taken, wait_s=30)
            await s.sandboxes.delete(box.sandbox_id, wait_s=30)

    asyncio.run(scenario())
