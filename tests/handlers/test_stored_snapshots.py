"""Snapshots that every node can fetch: stored on request, believed when every chunk is there, used elsewhere, collected, lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.node import ScriptedNode
from support.waiting import eventually

from bus import chunks
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.artifact import Artifact
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Deadlines
from handlers.plane import ControlPlane
from handlers.processes import shipping

SHARED, ONE, TWO = b"shared" * 100, b"one" * 100, b"two" * 100
FULL = Failure(code="node.disk-full", message="no room", retryable=False)


@asynccontextmanager
async def another_node(place, name: str = "node-2", flags: tuple[str, ...] = ("limits",)) -> AsyncIterator[ScriptedNode]:
    await place.do("node.enroll", {"node_id": name})
    made = ScriptedNode(place.nc, name)
    made.flags = flags
    async with made as node:
        await eventually(lambda: name in {n.node_id for n in place.plane.control.fleet.healthy_nodes()})
        yield node


async def taken(place, sandbox: str, *contents: bytes, **body) -> str:
    """A snapshot whose content is known before it is stored."""
    place.node.hold = lambda order: order.verb == Verb.SANDBOX_SNAPSHOT
    made = await place.do("snapshot.create", {"sandbox_id": sandbox, **body})
    order = (await eventually(lambda: [o for o in place.node.did(Verb.SANDBOX_SNAPSHOT) if o.process_id == made["snapshot_id"]]))[0]
    place.node.contents[made["snapshot_id"]] = contents or (made["snapshot_id"].encode(),)
    place.node.hold = lambda order: False
    await place.node.answer(order)
    await eventually(lambda: is_in(place, made["snapshot_id"], SnapshotState.READY))
    return made["snapshot_id"]


async def is_in(place, snapshot: str, state: SnapshotState) -> bool:
    return (await place.get(Snapshot, snapshot)).state is state


async def stored(place, snapshot: str) -> None:
    done = await place.do("snapshot.export", {"snapshot_id": snapshot, "wait_s": 10})
    assert (done["status"], done["settled"]) == ("stored", True)


async def there(place, *contents: bytes) -> set[bytes]:
    missing = await chunks.missing(place.nc, map(chunks.digest_of, contents))
    return {content for content in contents if chunks.digest_of(content) not in missing}


def test_a_snapshot_is_stored_on_request_and_once(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = await taken(place, sandbox, SHARED, ONE)
        assert (await place.get(Snapshot, snapshot)).stored_as is None
        await stored(place, snapshot)
        await stored(place, snapshot)
        assert len(place.node.did(Verb.SNAPSHOT_EXPORT)) == 1
        found = (await place.get(Snapshot, snapshot)).stored_as
        assert (found.chunks, found.moved_chunks, found.size_bytes) == (2, 2, len(SHARED + ONE))
        at_once = await taken(place, sandbox, SHARED, TWO, replicate=True)

        async def is_stored() -> bool:
            found = (await place.get(Snapshot, at_once)).stored_as
            return found is not None and (found.chunks, found.moved_chunks) == (2, 1)

        await eventually(is_stored)

    at(test)


def test_what_a_node_says_is_stored_is_believed_when_every_chunk_is_there(at) -> None:
    """The node that lost one on the way is asked again; one that never gets it there is not asked for ever."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        real, lose = place.node.store, [1]

        async def store(order) -> None:
            await real(order)
            if lose:
                lose.pop()
                await chunks.drop(place.nc, chunks.digest_of(ONE))

        place.node.store = store
        snapshot = await taken(place, sandbox, ONE, TWO)
        await stored(place, snapshot)
        assert [order.attempt for order in place.node.did(Verb.SNAPSHOT_EXPORT)] == [1, 2]
        lose[:] = [1] * 9
        never = await taken(place, sandbox, ONE, TWO)
        with pytest.raises(Refused) as refused:
            await place.do("snapshot.export", {"snapshot_id": never, "wait_s": 10})
        assert (refused.value.code, refused.value.message) == ("snapshot.export-failed", "1 chunks are missing")
        assert (await place.get(Snapshot, never)).state is SnapshotState.READY

    at(test)


def test_a_node_that_cannot_store_it_says_why_and_may_be_asked_again(at) -> None:
    async def test(place) -> None:
        snapshot = await taken(place, await place.sandbox(await place.template()))
        place.node.refuse = lambda order: FULL if order.verb == Verb.SNAPSHOT_EXPORT else None
        with pytest.raises(Refused, match="no room"):
            await place.do("snapshot.export", {"snapshot_id": snapshot, "wait_s": 10})
        place.node.refuse = lambda order: None
        await stored(place, snapshot)
        assert [order.attempt for order in place.node.did(Verb.SNAPSHOT_EXPORT)] == [1, 2]

    at(test)


def test_an_export_that_nobody_answers_ends(at) -> None:
    async def test(place) -> None:
        snapshot = await taken(place, await place.sandbox(await place.template()))
        place.node.hold = lambda order: order.verb == Verb.SNAPSHOT_EXPORT
        with pytest.raises(Refused) as refused:
            await place.do("snapshot.export", {"snapshot_id": snapshot, "wait_s": 10})
        assert (refused.value.code, refused.value.message) == ("snapshot.export-failed", "no node has stored it in time")

    at(test, Deadlines(job_s=2, watchdog_s=0.2))


def test_a_sandbox_starts_where_the_snapshot_is_and_elsewhere_only_if_it_can_be_fetched(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = await taken(place, sandbox)
        async with another_node(place) as other:
            with pytest.raises(Refused) as refused:
                await place.do("sandbox.create", {"snapshot_id": snapshot, "node": "node-2"})
            assert refused.value.code == "snapshot.not-on-node"
            await stored(place, snapshot)
            near = await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10})
            assert near["node_id"] == "node-1"
            far = await place.do("sandbox.create", {"snapshot_id": snapshot, "node": "node-2", "wait_s": 10})
            (order,) = other.did(Verb.SANDBOX_PROVISION)
            known = await place.get(Snapshot, snapshot)
            assert order.body["spec"]["snapshot_manifest"] == known.stored_as.manifest
            assert (known.places, set(known.refs)) == ({"node-1", "node-2"}, {near["sandbox_id"], far["sandbox_id"]})
            assert "node-2" in (await place.get(Artifact, known.artifact.artifact_id, SYSTEM_PROJECT)).placements
            await place.do("node.cordon", {"node_id": "node-1"})
            assert (await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10}))["node_id"] == "node-2"
            for box in (sandbox, near["sandbox_id"]):
                await place.do("sandbox.delete", {"sandbox_id": box, "wait_s": 10})
            await place.do("snapshot.delete", {"snapshot_id": snapshot})
            assert other.did(Verb.SNAPSHOT_REMOVE) == [], "a sandbox there still runs on it"
            for entry in list(place.plane.control.fleet.sandboxes):
                await place.do("sandbox.delete", {"sandbox_id": entry, "wait_s": 10})
            await eventually(lambda: is_in(place, snapshot, SnapshotState.GONE))
            assert [len(node.did(Verb.SNAPSHOT_REMOVE)) for node in (place.node, other)] == [1, 1]

    at(test)


def test_a_stored_memory_goes_on_only_where_the_driver_can_go_on_from_it(at) -> None:
    async def test(place) -> None:
        place.node.needs = "resumes-1"
        snapshot = await taken(place, await place.sandbox(await place.template()))
        await stored(place, snapshot)
        assert (await place.do("sandbox.create", {"snapshot_id": snapshot}))["node_id"] == "node-1", "it may know better than it has told"
        async with another_node(place):
            await place.do("node.cordon", {"node_id": "node-1"})
            for wish in ({}, {"node": "node-2"}):
                with pytest.raises(Refused) as refused:
                    await place.do("sandbox.create", {"snapshot_id": snapshot, **wish})
                assert refused.value.code == "snapshot.incompatible"
                assert refused.value.details == {"nodes": ["node-2"], "flag": "resumes-1"}
            async with another_node(place, "node-3", ("limits", "resumes-0", "resumes-1")):
                assert (await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10}))["node_id"] == "node-3"

    at(test)


def test_snapshots_of_an_evicted_node_are_recovered_from_the_store_or_lost(at) -> None:
    """Scenario 21's other half: a node that is gone for good takes with it what only it had, and the code says so."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        kept, lost = await taken(place, sandbox), await taken(place, sandbox)
        await stored(place, kept)
        async with another_node(place):
            await place.do("node.evict", {"node_id": "node-1"})
            await eventually(lambda: is_in(place, lost, SnapshotState.FAILED))
            with pytest.raises(Refused) as refused:
                await place.do("sandbox.create", {"snapshot_id": lost})
            assert (refused.value.code, refused.value.details) == ("snapshot.lost", {"cause": "snapshot.node-evicted"})

            async def nowhere() -> bool:
                return (await place.get(Snapshot, kept)).places == set()

            await eventually(nowhere)
            recovered = await place.do("sandbox.create", {"snapshot_id": kept, "wait_s": 10})
            assert (recovered["node_id"], recovered["state"]) == ("node-2", "RUNNING")
            await place.do("sandbox.delete", {"sandbox_id": recovered["sandbox_id"], "wait_s": 10})
            for snapshot in (kept, lost):
                await place.do("snapshot.delete", {"snapshot_id": snapshot, "wait_s": 10})
                await eventually(lambda snapshot=snapshot: is_in(place, snapshot, SnapshotState.GONE))

    at(test)


def test_chunks_go_with_the_last_snapshot_that_needs_them(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        first, second = await taken(place, sandbox, SHARED, ONE), await taken(place, sandbox, SHARED, TWO)
        for snapshot in (first, second):
            await stored(place, snapshot)
        await chunks.put(place.nc, chunks.digest_of(b"nobody's"), b"nobody's")
        await place.do("snapshot.delete", {"snapshot_id": first, "wait_s": 10})

        async def left(*contents: bytes) -> bool:
            return await there(place, SHARED, ONE, TWO, b"nobody's") == set(contents)

        await eventually(lambda: left(SHARED, TWO))
        await place.do("snapshot.delete", {"snapshot_id": second, "wait_s": 10})
        await eventually(left)

    at(test, Deadlines(collect_s=0.1))


def test_a_stored_snapshot_that_is_damaged_counts_no_more_and_is_stored_again(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = await taken(place, sandbox, ONE, TWO)
        await stored(place, snapshot)
        gone = Failure(code="object.not-found", message="a chunk is not stored")
        async with another_node(place) as other:
            other.refuse = lambda order: gone if order.verb == Verb.SANDBOX_PROVISION else None
            with pytest.raises(Refused):
                await place.do("sandbox.create", {"snapshot_id": snapshot, "node": "node-2", "wait_s": 10})
            known = await place.get(Snapshot, snapshot)
            assert known.stored_as is not None, "a claim that is not true changes nothing"
            await chunks.drop(place.nc, chunks.digest_of(ONE))
            with pytest.raises(Refused):
                await place.do("sandbox.create", {"snapshot_id": snapshot, "node": "node-2", "wait_s": 10})

            async def noticed() -> bool:
                known = await place.get(Snapshot, snapshot)
                return known.stored_as is None and known.places == {"node-1"}

            await eventually(noticed)
            assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING

    at(test)


def test_a_snapshot_that_its_node_does_not_list_is_lost_there(at) -> None:
    """Not one that is newer than the listing, nor one that a sandbox there runs on; a stored one is only somewhere else."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        kept, gone, safe, used = [await taken(place, sandbox) for _ in range(4)]
        await stored(place, safe)
        await place.do("sandbox.create", {"snapshot_id": used, "wait_s": 10})
        await place.node.has(kept, age_s=3600)
        await place.node.has(kept)
        await eventually(lambda: is_in(place, gone, SnapshotState.FAILED))

        async def nowhere() -> bool:
            return (await place.get(Snapshot, safe)).places == set()

        await eventually(nowhere)
        states = {name: (await place.get(Snapshot, name)).state for name in (kept, safe, used)}
        assert set(states.values()) == {SnapshotState.READY}
        assert (await place.get(Snapshot, gone)).error_code == "snapshot.lost"

    at(test)


def test_a_snapshot_that_becomes_ready_while_an_older_listing_is_looked_at_is_not_lost(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        gone = await taken(place, sandbox)
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_SNAPSHOT
        made = (await place.do("snapshot.create", {"sandbox_id": sandbox}))["snapshot_id"]
        (order,) = await eventually(lambda: [o for o in place.node.did(Verb.SANDBOX_SNAPSHOT) if o.process_id == made])
        control, looked = place.plane.control, asyncio.Event()
        find = control.find

        async def find_and_wait(cls, project: str, identifier: str):
            seen = await find(cls, project, identifier)
            if identifier == made and not looked.is_set():
                looked.set()
                await place.node.answer(order)
                await eventually(lambda: is_in(place, made, SnapshotState.READY))
            return seen

        control.find = find_and_wait
        await place.node.has(gone)
        await looked.wait()
        await place.node.has(made)
        await eventually(lambda: is_in(place, gone, SnapshotState.FAILED))  # listings are looked at one after the other
        assert await is_in(place, made, SnapshotState.READY)

    at(test)


def test_a_rollback_tells_the_node_where_the_snapshot_is_stored(at) -> None:
    """It may have lost it; without that it goes back to what it has."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = await taken(place, sandbox, ONE)
        await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot, "wait_s": 10})
        await stored(place, snapshot)
        known = await place.get(Snapshot, snapshot)
        await place.node.has(age_s=-1)
        child = (await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10}))["sandbox_id"]
        await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot, "wait_s": 10})
        first, second = place.node.did(Verb.SANDBOX_ROLLBACK)
        assert (first.body.get("snapshot_manifest"), second.body["snapshot_manifest"]) == (None, known.stored_as.manifest)
        found = await place.get(Snapshot, snapshot)
        assert (found.places, child in found.refs) == ({"node-1"}, True)

    at(test)


def test_a_rollback_that_cannot_fetch_it_leaves_the_sandbox_as_it_is(at) -> None:
    """What is stored is damaged and no node has it: the snapshot is lost, and says so."""

    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        snapshot = await taken(place, sandbox, ONE)
        await stored(place, snapshot)
        await chunks.drop(place.nc, chunks.digest_of(ONE))
        gone = Failure(code="object.not-found", message="a chunk is not there", retryable=False)
        place.node.refuse = lambda order: gone if order.verb == Verb.SANDBOX_ROLLBACK else None
        with pytest.raises(Refused) as refused:
            await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot, "wait_s": 10})
        assert refused.value.code == "object.not-found"
        assert (await place.get(Sandbox, sandbox)).state is SandboxState.RUNNING
        await eventually(lambda: is_in(place, snapshot, SnapshotState.FAILED))
        with pytest.raises(Refused) as lost:
            await place.do("sandbox.rollback", {"sandbox_id": sandbox, "snapshot_id": snapshot})
        assert (lost.value.code, lost.value.details["cause"]) == ("snapshot.lost", "snapshot.bytes-lost")

    at(test)


@pytest.mark.parametrize("moment", ["ordered", "storing", "answered"])
def test_an_export_whose_control_plane_died_is_finished_by_the_next_and_leaves_nothing_behind(at, moment: str) -> None:
    """Whenever that was: before the node has begun, while it stores, before anybody has read what it says."""

    async def test(place) -> None:
        snapshot = await taken(place, await place.sandbox(await place.template()), ONE, TWO)
        place.node.hold = lambda order: order.verb == Verb.SNAPSHOT_EXPORT
        await place.do("snapshot.export", {"snapshot_id": snapshot})
        (order,) = await eventually(lambda: place.node.did(Verb.SNAPSHOT_EXPORT))
        if moment == "storing":
            await chunks.put_manifest(
                place.nc, "default", snapshot, chunks.Manifest("copies", "rfs", 0, 1, tuple(map(chunks.digest_of, (ONE, TWO))))
            )
            await chunks.put(place.nc, chunks.digest_of(ONE), ONE)
        await place.plane.close()
        if moment == "answered":
            await place.node.answer(order)
        place.plane = await ControlPlane.open(place.nc, name="next", deadlines=Deadlines(abandoned_s=0))
        await place.plane.start()
        try:
            assert await shipping.collect(place.plane.control) == 0, "what is being stored is nobody's waste"
            if moment != "answered":
                await place.node.answer(order)

            async def is_stored() -> bool:
                found = await place.get(Snapshot, snapshot)
                return found.export is None and found.stored_as is not None

            await eventually(is_stored)
            assert await there(place, ONE, TWO) == {ONE, TWO}
            place.node.hold = lambda order: False
            await place.do("snapshot.delete", {"snapshot_id": snapshot, "wait_s": 10})
            await eventually(lambda: is_in(place, snapshot, SnapshotState.GONE))
            await shipping.collect(place.plane.control)
            assert await there(place, ONE, TWO) == set()
        finally:
            await place.plane.close()

    at(test)


def test_a_restore_elsewhere_whose_control_plane_died_is_finished_and_all_of_it_can_be_taken_away(at) -> None:
    async def test(place) -> None:
        snapshot = await taken(place, await place.sandbox(await place.template()), ONE)
        await stored(place, snapshot)
        async with another_node(place) as other:
            other.hold = lambda order: order.verb == Verb.SANDBOX_PROVISION
            box = (await place.do("sandbox.create", {"snapshot_id": snapshot, "node": "node-2"}))["sandbox_id"]
            (order,) = await eventually(lambda: other.did(Verb.SANDBOX_PROVISION))
            await place.plane.close()
            await other.answer(order)
            place.plane = await ControlPlane.open(place.nc, name="next", deadlines=Deadlines(abandoned_s=0))
            await place.plane.start()
            try:

                async def runs() -> bool:
                    return (await place.get(Sandbox, box)).state is SandboxState.RUNNING

                await eventually(runs)
                assert (await place.get(Snapshot, snapshot)).places == {"node-1", "node-2"}
                await place.do("snapshot.delete", {"snapshot_id": snapshot})
                await place.do("sandbox.delete", {"sandbox_id": box, "wait_s": 10})
                await eventually(lambda: is_in(place, snapshot, SnapshotState.GONE))
                assert [len(node.did(Verb.SNAPSHOT_REMOVE)) for node in (place.node, other)] == [1, 1]
                await shipping.collect(place.plane.control)
                assert await there(place, ONE) == set()
            finally:
                await place.plane.close()

    at(test)
