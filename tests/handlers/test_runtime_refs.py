"""Which sandbox runs on which snapshot: what is kept when nobody can say, and for how long (reference/cubesandbox.md §5.3, §5.5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from support.waiting import eventually

from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.snapshot import Snapshot, SnapshotState
from handlers.control import Deadlines

DAY = timedelta(days=1)
NOBODY = "sb-" + "z" * 20
QUICK = Deadlines(watchdog_s=0.05)


async def taken(place) -> str:
    box = await place.sandbox(await place.template())
    return (await place.do("snapshot.create", {"sandbox_id": box, "wait_s": 10}))["snapshot_id"]


async def refs(place, snapshot: str) -> dict:
    return (await place.get(Snapshot, snapshot)).refs


async def attached(place, snapshot: str, sandbox: str, age: timedelta) -> None:
    """A ref as a control plane that died at the wrong moment may have left it."""
    control = place.plane.control
    cause = control.own_cause("default", "test", snapshot, sandbox)
    attach = partial(Snapshot.attach, at=datetime.now(UTC) - age, sandbox_id=sandbox, node_id="node-1")
    await control.change(Snapshot, "default", snapshot, cause, attach)


async def watched_once(place, snapshot: str) -> None:
    """The watchdog has looked at it after now."""
    await place.plane.processes.pump(("snapshot", "default", snapshot))


def later(place, by: timedelta) -> None:
    began = datetime.now(UTC)
    place.plane.control.clock = lambda: began + by


def test_a_ref_of_a_sandbox_that_nobody_knows_holds_a_deleted_snapshot_for_a_day(at) -> None:
    """Scenario 21, virtual time."""

    async def test(place) -> None:
        snapshot = await taken(place)
        await attached(place, snapshot, NOBODY, timedelta(hours=1))
        await place.do("snapshot.delete", {"snapshot_id": snapshot})
        later(place, timedelta(hours=22))
        await watched_once(place, snapshot)
        assert set(await refs(place, snapshot)) == {NOBODY}
        later(place, timedelta(hours=24))
        await eventually(partial(is_in, place, snapshot, SnapshotState.GONE))
        assert await refs(place, snapshot) == {}

    at(test, QUICK)


def test_a_ref_of_a_sandbox_that_nobody_has_ended_is_no_orphan_however_old_it_is(at) -> None:
    """Whether its node is silent or not: only an eviction ends what is on a node that does not answer."""

    async def test(place) -> None:
        snapshot = await taken(place)
        child = (await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10}))["sandbox_id"]
        await place.do("snapshot.delete", {"snapshot_id": snapshot})
        later(place, 3 * DAY)
        await watched_once(place, snapshot)
        assert set(await refs(place, snapshot)) == {child}
        assert (await place.get(Sandbox, child)).state is SandboxState.RUNNING

    at(test, QUICK)


def test_a_store_that_does_not_answer_is_no_proof_that_a_sandbox_is_gone(at, monkeypatch) -> None:
    async def test(place) -> None:
        snapshot = await taken(place)
        await attached(place, snapshot, NOBODY, 2 * DAY)
        find = type(place.plane.control).find

        async def away(control, cls, project, identifier):
            if identifier == NOBODY:
                raise OSError("the store is away")
            return await find(control, cls, project, identifier)

        monkeypatch.setattr(type(place.plane.control), "find", away)
        await place.do("snapshot.delete", {"snapshot_id": snapshot})
        with pytest.raises(OSError, match="away"):
            await watched_once(place, snapshot)
        assert set(await refs(place, snapshot)) == {NOBODY}
        monkeypatch.undo()
        await eventually(partial(is_in, place, snapshot, SnapshotState.GONE))

    at(test, QUICK)


def test_a_node_that_cannot_list_its_sandboxes_puts_their_refs_in_doubt_and_no_more(at) -> None:
    """Scenario 23: nothing is released, the error is stamped, and goes when the node can list again."""

    async def test(place) -> None:
        snapshot = await taken(place)
        child = (await place.do("sandbox.create", {"snapshot_id": snapshot, "wait_s": 10}))["sandbox_id"]

        async def said(error: str | None) -> bool:
            return (await refs(place, snapshot))[child].last_error == error

        await place.node.lists({}, complete=False)
        await eventually(partial(said, "the node could not list its sandboxes"))
        assert (await place.get(Sandbox, child)).state is SandboxState.RUNNING
        version = (await place.get(Snapshot, snapshot)).version
        await place.node.lists({}, complete=False)
        origin = (await place.get(Snapshot, snapshot)).sandbox_id
        await place.node.lists({child: "running", origin: "running"})
        await eventually(partial(said, None))
        assert (await place.get(Snapshot, snapshot)).version == version + 1, "what is known already is no news"

    at(test)


async def is_in(place, snapshot: str, state: SnapshotState) -> bool:
    return (await place.get(Snapshot, snapshot)).state is state
