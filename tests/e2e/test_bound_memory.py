"""Sandboxes that run on the memory of a snapshot, through the whole product: what is held, who is bound to it, and that a node's account
of what lives there corrects it (reference/cubesandbox.md §1.6, §5.5).
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import guests
from support.installation import Running, compose_image, up
from support.killing import kill
from support.waiting import eventually

from agents.host import processes
from strandline import Strandline


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One node whose sandboxes are microVMs."""
    guests.ready()
    base = tmp_path_factory.mktemp("memory")
    image = compose_image(base / "image")

    async def template(directory: Path) -> None:
        async with Strandline.connect(directory) as s:
            made = await s.templates.create(image, alias="machine", memory_mb=128)
            assert (await s.jobs.wait(made.job_id)).status == "READY"

    with up(base / "state", "--driver", "vm", env={"STRAND_GUEST_DIR": str(guests.GUESTS)}) as made:
        asyncio.run(template(made.dir))
        yield made


async def said(s: Strandline, sandbox: str, script: str) -> str:
    done = await s.sandboxes.exec(sandbox, ["/bin/sh", "-c", script])
    assert done.exit_code == 0, done
    return base64.b64decode(done.stdout).decode().strip()


def machine_of(running: Running, sandbox: str) -> tuple[int, int]:
    """Pid and start time of its process on this host."""
    handle = json.loads((running.dir / "nodes" / "node-1" / "drivers" / "vm" / sandbox / "handle.json").read_text())
    return handle["state"]["pid"], handle["state"]["started"]


async def bound(s: Strandline, snapshot: str) -> dict[str, dict[str, Any]]:
    """The refs of a snapshot, released ones too, by sandbox."""
    return {ref["sandbox_id"]: ref for ref in (await s.query("runtime-refs", "list", {"snapshot_id": snapshot}))["items"]}


async def memory_held(s: Strandline) -> tuple[str, str, str]:
    """A sandbox that has something in mind, a snapshot of it, and another sandbox that was started from that."""
    origin = await s.sandboxes.create("machine", cmd=["sleep", "1000"], wait_s=60)
    await said(s, origin.sandbox_id, "echo in mind > /dev/shm/mind")
    taken = await s.snapshots.create(origin.sandbox_id)
    assert (await s.jobs.wait(taken.job_id)).status == "READY"
    child = await s.sandboxes.create(snapshot_id=taken.snapshot_id, wait_s=60)
    return origin.sandbox_id, taken.snapshot_id, child.sandbox_id


@pytest.mark.timeout(120)
def test_a_sandbox_on_the_memory_of_a_snapshot_is_bound_to_it_and_what_its_node_does_not_list_is_let_go(running: Running) -> None:
    """The node's disk is put back to how it was before: its agent knows of none of them, and what still runs is nobody's."""

    async def scenario() -> None:
        async with Strandline.connect(running.dir) as s:
            origin, snapshot, child = await memory_held(s)
            assert await said(s, child, "cat /dev/shm/mind") == "in mind"
            seen = await s.snapshots.get(snapshot)
            assert (seen.model_dump()["holds"], seen.runtime_refs) == (["disk", "memory"], [child])
            ref = (await bound(s, snapshot))[child]
            assert (ref["status"], ref["node_id"], ref["generation"], ref["released_at"]) == ("ACTIVE", "node-1", 0, None)

            machines = [machine_of(running, sandbox) for sandbox in (origin, child)]
            assert all(processes.alive(*machine) for machine in machines)
            await asyncio.to_thread(shutil.rmtree, running.dir / "nodes" / "node-1" / "journal")
            await kill(running.dir, "node-1")

            async def released() -> dict[str, Any] | None:
                ref = (await bound(s, snapshot))[child]
                return ref if ref["status"] == "RELEASED" else None

            ref = await eventually(released, within=40)
            assert (ref["reason"], ref["released_at"] is not None) == ("sandbox destroyed", True)
            assert (await s.snapshots.get(snapshot)).runtime_refs == []
            for lost in (origin, child):
                sandbox = await s.sandboxes.get(lost)
                assert (sandbox.state, sandbox.reason) == ("DEAD", "node_lost")

            assert not any(processes.alive(*machine) for machine in machines)

    asyncio.run(scenario())
