"""kill -9 of a real agent while a snapshot goes to the shared store and comes back: it is there in the end, whole, and nothing else is."""

from __future__ import annotations

import base64
import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.agents import AgentProcess, Installation
from support.waiting import eventually

from agents.storage.all import all_roots
from bus import chunks
from bus.chunkkeeper import ChunkKeeper
from domain.nodes.orders import Report, ReportKind, Verb

SNAPSHOT = "snap-" + "c" * 24
OF_SNAPSHOT = {"process": "snapshot", "process_id": SNAPSHOT}
EXPORT = ("export-manifest:after", "export-chunk:after", "report:before")
FETCH = ("fetch-chunk:after", "fetch:after")
BIG = random.Random(7).randbytes(3_000_000)
"""Several chunks."""

pytestmark = pytest.mark.slow


async def sh(place: Installation, sandbox: str, script: str) -> str:
    report = await place.tell(Verb.SANDBOX_EXEC, {"sandbox_id": sandbox, "cmd": ["/bin/sh", "-c", script]})
    assert report.kind is ReportKind.DONE, report
    return base64.b64decode(report.body["stdout"]).decode()


def disk(place: Installation, sandbox: str) -> Path:
    """Where the sandbox's files are on the host: beside the one that it has written itself."""
    return next((place.own / "storage" / "roots" / sandbox).rglob("kept")).parent


async def taken(place: Installation, *, stored: bool = False) -> str:
    """A snapshot on the node, of a sandbox that is gone; its manifest, if it is to be ``stored`` and is not on the node any more."""
    async with AgentProcess(place, "sim") as agent:
        body = place.provision("one")
        assert (await place.tell(Verb.SANDBOX_PROVISION, body)).kind is ReportKind.DONE
        await sh(place, body["sandbox_id"], "echo kept > /kept")
        (disk(place, body["sandbox_id"]) / "big").write_bytes(BIG)
        taking = {"sandbox_id": body["sandbox_id"], "snapshot_id": SNAPSHOT}
        assert (await place.tell(Verb.SANDBOX_SNAPSHOT, taking)).kind is ReportKind.DONE
        await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": body["sandbox_id"], "grace_s": 0})
        sent = await place.tell(Verb.SNAPSHOT_EXPORT, {"snapshot_id": SNAPSHOT}, **OF_SNAPSHOT) if stored else None
        await agent.stop()
    if sent is None:
        return ""
    shutil.rmtree(place.own / "storage" / "snapshots" / SNAPSHOT)
    return str(sent.body["manifest"])


async def done_after(place: Installation, verb: Verb, body: dict[str, Any], point: str, **about: Any) -> Report:
    """What the next agent says of an order at which one has died."""
    order = place.order(verb, body, **about)
    async with AgentProcess(place, "sim", crash_at=point) as first:
        await place.send(order)
        assert await first.ended() == -9, first.log()[-2000:]
    async with AgentProcess(place, "sim") as second:
        report = await place.end_of(order)
        assert report.kind is ReportKind.DONE, (report, second.log()[-2000:])
        await second.stop()
        return report


async def unneeded(place: Installation, manifest: str) -> int:
    """How many chunks are stored that this manifest does not name."""

    async def keep(_project: str, owner: str, digest: str) -> bool:
        return (owner, digest) == (SNAPSHOT, manifest)

    return await chunks.collect(place.nc, keep, timedelta(0))


async def stored(place: Installation, point: str) -> str:
    """Its manifest, after an export that was cut off at that point."""
    report = await done_after(place, Verb.SNAPSHOT_EXPORT, {"snapshot_id": SNAPSHOT}, point, **OF_SNAPSHOT)
    manifest = report.body["manifest"]
    found = await chunks.get_manifest(place.nc, "default", SNAPSHOT, manifest)
    assert await chunks.missing(place.nc, found.chunks) == set()
    assert await unneeded(place, manifest) == 0
    return manifest


@pytest.mark.parametrize("point", EXPORT)
def test_an_export_that_was_cut_off_is_whole_after_the_next_start(installed, run, point):
    async def scenario():
        async with installed() as place, ChunkKeeper(place.nc):
            await taken(place)
            await stored(place, point)

    run(scenario())


@pytest.mark.parametrize("point", FETCH)
def test_a_fetch_that_was_cut_off_ends_with_the_sandbox_and_no_half_of_a_snapshot(installed, run, point):
    async def scenario():
        async with installed() as place, ChunkKeeper(place.nc):
            manifest = await taken(place, stored=True)
            body = place.provision("two", snapshot_id=SNAPSHOT)
            body["spec"]["snapshot_manifest"] = manifest
            await done_after(place, Verb.SANDBOX_PROVISION, body, point)
            async with AgentProcess(place, "sim") as last:
                box = body["sandbox_id"]
                assert await sh(place, box, "cat /kept") == "kept\n"
                assert (disk(place, box) / "big").read_bytes() == BIG
                await place.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": box, "grace_s": 0})
                await place.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})
                await last.stop()
            assert set((await all_roots(place.own / "storage").list()).snapshots) == set()
            shelf = place.own / "storage" / "snapshots"
            await eventually(lambda: [path.name for path in shelf.iterdir()] == [])

    run(scenario())
