"""The acceptance scenarios about snapshots (reference/cubesandbox.md §11), through the bus, on a node that can be told to misbehave."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from support.places import refusal
from support.waiting import eventually
from support.watched import watched

from domain.nodes.orders import Failure, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.job import Job, JobState
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Deadlines
from handlers.plane import ControlPlane

BROKEN = Failure(code="storage.copy-failed", message="the copy broke off")


async def is_in(place, snapshot: str, *states: SnapshotState) -> bool:
    return (await place.get(Snapshot, snapshot)).state in states


def test_the_same_request_has_the_same_answer_whatever_became_of_it(at) -> None:
    """Scenario 15. Ours: the id of the command is the request's; another body under it is ``command.mismatch``."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        body = {"sandbox_id": box, "name": "one"}
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_SNAPSHOT
        first = await place.do("snapshot.create", body, command_id="c1")
        assert await place.do("snapshot.create", body, command_id="c1") == first, "RUNNING: the same job, not a second one"
        assert (await refusal(place.do("snapshot.create", {**body, "name": "two"}, command_id="c1"))).code == "command.mismatch"
        again = place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": first["snapshot_id"]}, command_id="c1")
        assert (await refusal(again)).code == "command.mismatch"
        place.node.hold = lambda order: False
        (order,) = await eventually(lambda: place.node.did(Verb.SANDBOX_SNAPSHOT))
        await place.node.answer(order)
        await eventually(lambda: is_in(place, first["snapshot_id"], SnapshotState.READY))
        ready = await place.do("snapshot.create", {**body, "wait_s": 5}, command_id="c1")
        assert {name: ready[name] for name in ("snapshot_id", "job_id")} == {name: first[name] for name in ("snapshot_id", "job_id")}
        place.node.refuse = lambda order: BROKEN if order.verb == Verb.SANDBOX_SNAPSHOT else None
        failed = [await refusal(place.do("snapshot.create", {**body, "wait_s": 5}, command_id="c2")) for _ in range(2)]
        assert failed[0].as_dict() == failed[1].as_dict()
        assert failed[0].code == "storage.copy-failed"
        await place.do("snapshot.delete", {"snapshot_id": first["snapshot_id"], "wait_s": 5}, command_id="c3")
        assert (await place.do("snapshot.delete", {"snapshot_id": first["snapshot_id"], "wait_s": 5}, command_id="c3"))["settled"]

    at(test)


def test_a_sandbox_does_one_thing_at_a_time_and_others_go_on(at) -> None:
    """Scenario 16."""

    async def test(place) -> None:
        template = await place.template()
        box, other = await place.sandbox(template), await place.sandbox(template)
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        place.node.hold = lambda order: order.verb == Verb.SANDBOX_SNAPSHOT and order.body["sandbox_id"] == box
        await place.do("snapshot.create", {"sandbox_id": box})
        for asked in (
            place.do("snapshot.create", {"sandbox_id": box}),
            place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken}),
        ):
            refused = await refusal(asked)
            assert (refused.code, refused.retryable) == ("sandbox.illegal-state", True)
        done = await place.do("snapshot.create", {"sandbox_id": other, "wait_s": 5})
        assert (await place.get(Snapshot, done["snapshot_id"])).state is SnapshotState.READY
        await place.do("snapshot.delete", {"snapshot_id": taken, "wait_s": 5})
        assert await is_in(place, taken, SnapshotState.GONE), "a delete waits for nobody"

    at(test)


def test_a_full_disk_takes_no_snapshots_and_lets_them_go(at) -> None:
    """Scenario 17: 84 % is a warning, from 85 % on nothing is taken or rolled back to, deletes go on at 96 %, unknown is no yes."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        await usage(place, 84, "warn")
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        for pct, mode in ((85, "reject"), (96, "delete_only")):
            await usage(place, pct, mode)
            for asked in (
                place.do("snapshot.create", {"sandbox_id": box}),
                place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken}),
                place.do("sandbox.clone", {"sandbox_id": box, "count": 1}),
            ):
                refused = await refusal(asked)
                assert (refused.code, refused.retryable, refused.details["mode"]) == ("storage.blocked", True, mode)
        await place.do("snapshot.delete", {"snapshot_id": taken, "wait_s": 5})
        assert await is_in(place, taken, SnapshotState.GONE)
        place.plane.control.fleet.nodes["node-1"].storage_mode = "unknown"
        assert (await refusal(place.do("snapshot.create", {"sandbox_id": box}))).details["mode"] == "unknown"

    async def usage(place, pct: float, mode: str) -> None:
        await place.node.hello(storage_pct=pct)
        await eventually(lambda: place.plane.control.fleet.nodes["node-1"].storage_mode == mode)

    at(test, Deadlines(storage_ease_s=0))


def test_a_snapshot_that_fails_says_why_and_can_be_deleted(at) -> None:
    """Scenario 18. The node itself leaves nothing of half a snapshot (tests/agents/core)."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        place.node.refuse = lambda order: BROKEN if order.verb == Verb.SANDBOX_SNAPSHOT else None
        failed = await refusal(place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}, command_id="c1"))
        assert failed.code == BROKEN.code
        snapshot = await place.get(Snapshot, place.node.did(Verb.SANDBOX_SNAPSHOT)[0].process_id)
        job = await place.get(Job, snapshot.job_id)
        assert (snapshot.state, snapshot.last_error) == (SnapshotState.FAILED, BROKEN.message)
        assert (job.state, job.failure.code) == (JobState.FAILED, BROKEN.code)
        assert (await refusal(place.do("sandbox.create", {"snapshot_id": snapshot.id}))).code == "snapshot.illegal-state"
        assert (await refusal(place.do("snapshot.export", {"snapshot_id": snapshot.id}))).code == "snapshot.illegal-state"
        place.node.refuse = lambda order: None
        again = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        assert await is_in(place, again, SnapshotState.READY), "its sandbox is free again"
        await place.do("snapshot.delete", {"snapshot_id": snapshot.id, "wait_s": 5})
        assert await is_in(place, snapshot.id, SnapshotState.GONE)

    at(test)


def test_a_sandbox_goes_back_to_its_own_snapshots_only_and_its_generation_only_grows(at) -> None:
    """Scenario 19."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        child = (await place.do("sandbox.create", {"snapshot_id": taken, "wait_s": 5}))["sandbox_id"]
        assert (await refusal(place.do("sandbox.rollback", {"sandbox_id": child, "snapshot_id": taken}))).code == "snapshot.foreign"
        generations = []
        for _ in range(2):
            back = await place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken, "wait_s": 5})
            generations.append(back["generation"])
        place.node.refuse = lambda order: BROKEN if order.verb == Verb.SANDBOX_ROLLBACK else None
        await refusal(place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken, "wait_s": 5}))
        place.node.refuse = lambda order: None
        newer = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        await place.do("snapshot.delete", {"snapshot_id": taken})
        back = await place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": newer, "wait_s": 5})
        assert [*generations, back["generation"]] == [1, 2, 4], "a generation that never came to be is not given out again"

    at(test)


def test_a_tombstone_is_found_by_nobody_and_goes_with_its_last_sandbox(at) -> None:
    """Scenario 21."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        child = (await place.do("sandbox.create", {"snapshot_id": taken, "wait_s": 5}))["sandbox_id"]
        for _ in range(2):
            assert (await place.do("snapshot.delete", {"snapshot_id": taken, "wait_s": 5}))["settled"], "READY at once, and again"
        for asked in (
            place.do("sandbox.create", {"snapshot_id": taken}),
            place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken}),
            place.do("snapshot.export", {"snapshot_id": taken}),
        ):
            assert (await refusal(asked)).code == "snapshot.not-found"
        assert (await place.get(Sandbox, child)).state is SandboxState.RUNNING
        assert place.node.did(Verb.SNAPSHOT_REMOVE) == []
        await place.do("sandbox.delete", {"sandbox_id": child, "wait_s": 5})
        await eventually(lambda: is_in(place, taken, SnapshotState.GONE))

    at(test)


def test_a_delete_whose_control_plane_died_is_finished_by_the_next(at) -> None:
    """Scenario 22. Ours: nothing fails; the tombstone is in the log, and whoever reads it takes the bytes away."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        place.node.hold = lambda order: order.verb == Verb.SNAPSHOT_REMOVE
        await place.do("snapshot.delete", {"snapshot_id": taken})
        await place.plane.close()
        place.plane = await ControlPlane.open(place.nc, name="next")
        await place.plane.start()
        try:
            place.node.hold = lambda order: False
            (order,) = await eventually(lambda: place.node.did(Verb.SNAPSHOT_REMOVE))
            await place.node.answer(order)
            await eventually(lambda: is_in(place, taken, SnapshotState.GONE))
            repeated = await asyncio.gather(*(refusal(place.do("snapshot.delete", {"snapshot_id": taken})) for _ in range(2)))
            assert {refused.code for refused in repeated} == {"snapshot.not-found"}
        finally:
            await place.plane.close()

    at(test)


def test_what_a_node_does_not_list_is_let_go_and_a_list_that_failed_lets_nothing_go(at) -> None:
    """Scenario 23: refs follow sandboxes, and a sandbox is lost by a complete list only, unless it is newer than the list."""

    async def test(place) -> None:
        box = await place.sandbox(await place.template())
        taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
        children = [(await place.do("sandbox.create", {"snapshot_id": taken, "wait_s": 5}))["sandbox_id"] for _ in range(2)]
        await place.node.lists({box: "running", children[0]: "running"}, complete=False)
        await place.node.lists({box: "running", children[0]: "running"}, age_s=3600)
        await place.do("sandbox.exec", {"sandbox_id": children[1], "cmd": ["true"]})
        assert set((await place.get(Snapshot, taken)).refs) == set(children)
        await place.node.lists({box: "running", children[0]: "running"})

        async def released() -> bool:
            return set((await place.get(Snapshot, taken)).refs) == {children[0]}

        await eventually(released)

    at(test)


def test_a_node_that_is_not_heard_of_lets_nothing_go(at, tmp_path) -> None:
    """Scenario 23: an unreachable node's refs are as they were (design.md §10.5)."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            box = await place.sandbox(await place.template())
            taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
            child = (await place.do("sandbox.create", {"snapshot_id": taken, "wait_s": 5}))["sandbox_id"]
            await w.silent("node-1")
            await place.do("snapshot.delete", {"snapshot_id": taken})
            [ref] = await w.ask("list", "runtime-refs", snapshot_id=taken)
            assert (ref["sandbox_id"], ref["node_id"], ref["status"]) == (child, "node-1", "ACTIVE")
            assert set((await place.get(Snapshot, taken)).refs) == {child}
            assert [item["mode"] for item in await w.ask("list", "storage")] == ["unknown"]

    at(test)


def test_a_rollback_whose_answer_comes_too_late_is_still_the_truth(at, tmp_path) -> None:
    """Scenario 20. Ours: one commit moves sandbox, ref and job, so that none is ever without the others; what can be half is the hearing.

    The sandbox is free at the operation's deadline, the job waits on in ROLLBACK_RECOVERING until its lease is over, and whatever the node
    says later moves the ref.
    """

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            box = await place.sandbox(await place.template())
            taken = (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"]
            place.node.hold = lambda order: order.verb == Verb.SANDBOX_ROLLBACK
            begun = await place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken})
            (order,) = await eventually(lambda: place.node.did(Verb.SANDBOX_ROLLBACK))
            await eventually(lambda: told(w, begun["job_id"], "RUNNING", "ROLLBACK_DRIVING"))
            passes(place, minutes=3)
            await eventually(lambda: told(w, begun["job_id"], "RUNNING", "ROLLBACK_RECOVERING"))
            assert (await place.get(Sandbox, box)).operation is None
            passes(place, minutes=20)
            await eventually(lambda: told(w, begun["job_id"], "FAILED", "ROLLBACK_RECOVERING"))
            await place.node.answer(order)
            await eventually(lambda: is_on(place, box, taken))
            snapshot = await place.get(Snapshot, taken)
            assert (snapshot.rollback, snapshot.refs[box].generation) == (None, begun["generation"])
            assert (await place.get(Job, begun["job_id"])).state is JobState.FAILED, "what was told is not taken back"
            assert [ref["snapshot_id"] for ref in await w.ask("list", "runtime-refs", sandbox_id=box)] == [taken]
            place.node.hold = lambda order: False
            again = await place.do("sandbox.rollback", {"sandbox_id": box, "snapshot_id": taken, "wait_s": 5})
            assert again["generation"] == begun["generation"] + 1

    async def told(w, job: str, status: str, phase: str) -> bool:
        [item] = await w.ask("get", "jobs", id=job)
        return (item["status"], item["phase"]) == (status, phase)

    async def is_on(place, box: str, snapshot: str) -> bool:
        return (await place.get(Sandbox, box)).snapshot_id == snapshot

    at(test, Deadlines(watchdog_s=0.05))


def test_snapshots_are_listed_page_by_page_and_not_at_all_once_they_are_deleted(at, tmp_path) -> None:
    """Scenario 25. Ours: a cursor is a key, so that nothing is skipped while items come and go; a limit beyond 1000 is refused."""

    async def test(place) -> None:
        async with watched(place, tmp_path) as w:
            box = await place.sandbox(await place.template())
            taken = [(await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 5}))["snapshot_id"] for _ in range(45)]
            pages = [page async for page in paged(w, limit=20)]
            assert [len(page) for page in pages] == [20, 20, 5]
            assert sorted(item["snapshot_id"] for page in pages for item in page) == sorted(taken)
            assert len(await w.ask("list", "snapshots", status="READY", origin_sandbox_id=box, limit=100)) == 45
            for field, value in (("cursor", "-1"), ("cursor", "x"), ("limit", 5000), ("limit", 0)):
                refused = await refusal(w.ask("list", "snapshots", **{field: value}))
                assert (refused.code, list(refused.details)) == ("query.invalid", [field])
            place.node.hold = lambda order: order.verb == Verb.SNAPSHOT_REMOVE
            await place.do("snapshot.delete", {"snapshot_id": taken[0]})
            for status in ({}, {"status": "DELETED"}, {"status": "READY"}):
                listed = await w.ask("list", "snapshots", **status)
                assert taken[0] not in [item["snapshot_id"] for item in listed]
            assert (await refusal(w.ask("get", "snapshots", id=taken[0]))).code == "snapshot.not-found"

    async def paged(w, limit: int):
        body: dict[str, object] = {"limit": limit, "min_seq": await w.place.plane.control.store.position()}
        while True:
            page = await w.place.caller.query("default", "snapshots", "list", body)
            yield page["items"]
            if page.get("next") is None:
                return
            body["cursor"] = page["next"]

    at(test)


def passes(place, minutes: float) -> None:
    place.plane.control.clock = lambda: datetime.now(UTC) + timedelta(minutes=minutes)
