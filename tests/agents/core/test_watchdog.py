"""What a node holds, when it says so, and how it takes away what is nobody's (reference/miren-sandbox.md §7.1, §7.2)."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.local_node import SNAPSHOT
from support.waiting import run

from agents.drivers.driver import RuntimeFault
from agents.records import order_entry
from agents.watchdog import Rhythm, Watchdog
from domain.nodes.orders import Observation, ReportKind, Verb

OTHER = "rfs-" + "0" * 24


def told(rig, what: Observation) -> list[dict[str, Any]]:
    return [report.body for report in rig.reports if report.verb == what]


async def look(rig, watchdog: Watchdog) -> dict[str, Any]:
    before = len(told(rig, Observation.HOLDINGS))
    await watchdog.look()
    await rig.eventually(lambda: len(told(rig, Observation.HOLDINGS)) > before)
    return told(rig, Observation.HOLDINGS)[-1]


def forgotten(rig, name: str) -> None:
    """Its record is gone and everything else of it is there."""
    rig.node.journal.write({"k": "gone", "id": rig.sandbox(name), "at": 0.0, "for_ever": False})


async def swept(rig, **what: Any) -> dict[str, Any]:
    body = {"at": rig.now.isoformat(), "trigger": "timer", **what}
    report = await rig.tell(Verb.NODE_SWEEP, body, key="node/n1", process="node", process_id="n1")
    assert report.kind is ReportKind.DONE, report
    return report.body


def ids(entries: list[dict[str, Any]]) -> set[str]:
    return {each["id"] for each in entries}


def test_a_node_says_what_it_holds_and_what_it_does_not_know(rig) -> None:
    async def scenario() -> None:
        async with rig.life() as node:
            both = await rig.up(), await rig.up("two")
            forgotten(rig, "two")
            (node.directory / "logs" / "sb-rest").mkdir()
            held = await look(rig, Watchdog(node, "b", lambda: 0))
            assert held["sandboxes"] == {both[0]: "running"}
            assert held["strangers"] == {both[1]: ["logs", "network", "roots", "sim"], "sb-rest": ["logs"]}
            assert (held["trigger"], held.get("unlisted"), held["artifacts"]) == ("start", [], None)

    run(scenario())


def test_what_cannot_be_listed_is_named_and_not_said_to_be_empty(rig, monkeypatch) -> None:
    async def broken(_: object) -> None:
        raise RuntimeFault("sim.broken", "told to fail")

    async def scenario() -> None:
        async with rig.life() as node:
            await rig.up()
            monkeypatch.setattr("agents.drivers.sim.SimDriver.list", broken)
            assert (await look(rig, Watchdog(node, "b", lambda: 0)))["unlisted"] == ["sim"]

    run(scenario())


def test_a_look_watches_again_what_has_lost_its_watcher(rig) -> None:
    async def scenario() -> None:
        async with rig.life() as node:
            sandbox = await rig.up()
            node.watches[sandbox].cancel()
            await rig.eventually(lambda: sandbox not in node.watches)
            await look(rig, Watchdog(node, "b", lambda: 0))
            assert sandbox in node.watches

    run(scenario())


def test_a_sweep_takes_away_everything_of_what_is_nobodys_and_nothing_else(rig) -> None:
    async def scenario() -> None:
        async with rig.life():
            kept, recorded, stranger = await rig.up(), await rig.up("two"), await rig.up("three")
            forgotten(rig, "three")
            body = await swept(rig, sandboxes={recorded: "dead", stranger: "unknown"})
            assert ids(body["removed"]) == {recorded, stranger}
            assert {frozenset(names) for names in (await rig.left()).values()} == {frozenset({kept})}
            again = await rig.tell(Verb.SANDBOX_PROVISION, rig.provision("two"))
            assert again.error.code == "sandbox.superseded", "an order for it that comes late does not bring it back"

    run(scenario())


def test_the_address_of_what_withstands_stays_taken_until_it_is_gone(rig, monkeypatch) -> None:
    """Scenario 23."""

    async def withstands(_: object, sandbox_id: str) -> None:
        raise RuntimeFault("sandbox.will-not-die", f"{sandbox_id} withstands")

    async def scenario() -> None:
        async with rig.life():
            sandbox, other = await rig.up(), await rig.up("two")
            forgotten(rig, "one")
            with monkeypatch.context() as patch:
                patch.setattr("agents.drivers.sim.SimDriver.destroy", withstands)
                body = await swept(rig, sandboxes={sandbox: "unknown"})
                assert [(each["id"], each["error"]) for each in body["failed"]] == [(sandbox, f"{sandbox} withstands")]
                assert body["removed"] == []
                assert set(await rig.leases.list()) == {sandbox, other}
            assert ids((await swept(rig, sandboxes={sandbox: "unknown"}))["removed"]) == {sandbox}
            assert set(await rig.leases.list()) == {other}

    run(scenario())


def test_what_an_order_works_on_stays(rig) -> None:
    async def scenario() -> None:
        async with rig.life() as node:
            node.journal.write(order_entry(rig.order(Verb.SANDBOX_PROVISION, rig.provision()), rig.now))
            body = await swept(rig, sandboxes={rig.sandbox(): "unknown"})
            assert (body["removed"], body["kept"]) == ([], 1)

    run(scenario())


def test_the_next_agent_keeps_the_address_of_what_it_cannot_end_and_says_so(rig, monkeypatch) -> None:
    async def withstands(_: object, sandbox_id: str) -> None:
        raise RuntimeFault("sandbox.will-not-die", f"{sandbox_id} withstands")

    async def scenario() -> None:
        async with rig.life(orderly=False):
            one, two = await rig.up(), await rig.up("two")
            forgotten(rig, "one")
        monkeypatch.setattr("agents.drivers.sim.SimDriver.destroy", withstands)
        async with rig.life():
            assert ids([each.model_dump() for each in rig.adopted.swept.failed]) == {one}
            assert set(await rig.leases.list()) == {one, two}
            monkeypatch.undo()
        async with rig.life():
            assert [(each.id, each.why) for each in rig.adopted.swept.removed] == [(one, "unrecorded")]
            assert set(await rig.leases.list()) == {two}

    run(scenario())


@pytest.mark.quick
def test_copies_are_looked_for_every_week_and_under_pressure_and_a_restart_changes_neither(rig) -> None:
    async def scenario() -> None:
        full = 79.9
        async with rig.life() as node:
            watchdog = Watchdog(node, "b", lambda: full, Rhythm())

            async def trigger(later: timedelta, dog: Watchdog = watchdog) -> str:
                rig.now += later
                held = await look(rig, dog)
                assert (held["artifacts"] is not None) == (held["trigger"] in {"schedule", "pressure"})
                return held["trigger"]

            assert await trigger(timedelta()) == "start"
            full = 80.0
            assert await trigger(timedelta(minutes=5)) == "timer", "the disk is looked at once an hour"
            assert await trigger(timedelta(minutes=55)) == "pressure", "80 % is enough"
            full = 50.0
            assert await trigger(timedelta(hours=1)) == "timer"
            assert await trigger(timedelta(hours=166), Watchdog(node, "c", lambda: full)) == "start", "another agent"
            assert await trigger(timedelta(minutes=59), Watchdog(node, "d", lambda: full)) == "start"
            assert await trigger(timedelta(minutes=1), Watchdog(node, "e", lambda: full)) == "schedule", "a week after the last time"
            full = 95.0
            assert await trigger(timedelta(minutes=5), Watchdog(node, "f", lambda: full)) == "pressure", "looked at by each agent at first"

    run(scenario())


def test_a_copy_that_nothing_needs_goes_and_one_that_is_needed_by_then_stays(rig) -> None:
    """Scenario 24: in use is kept, whatever anybody says."""

    async def scenario() -> None:
        async with rig.life() as node:
            rig.now = datetime.now(UTC) + timedelta(minutes=1)
            artifact = rig.artifact.artifact_id
            sandbox = await rig.up()
            node.cache.path(OTHER).write_bytes(b"x")
            os.utime(node.cache.path(OTHER), (1, 1))
            held = (await look(rig, Watchdog(node, "b", lambda: 100)))["artifacts"]
            assert {name: datetime.fromisoformat(at).timestamp() for name, at in held.items()} == {OTHER: 1}
            gone = await swept(rig, artifacts={OTHER: "unknown", artifact: "deleted"})
            assert (ids(gone["removed"]), gone["failed"], gone["kept"]) == ({OTHER}, [], 1)
            assert node.cache.artifacts() == {artifact}
            await rig.tell(Verb.SANDBOX_SNAPSHOT, {"sandbox_id": sandbox, "snapshot_id": SNAPSHOT})
            await rig.tell(Verb.SANDBOX_DESTROY, {"sandbox_id": sandbox})
            (failed,) = (await swept(rig, artifacts={artifact: "deleted"}))["failed"]
            assert failed["error"].startswith(f"{artifact} is used by"), "a snapshot lies over it"
            await rig.tell(Verb.SNAPSHOT_REMOVE, {"snapshot_id": SNAPSHOT})
            stale = await swept(rig, artifacts={artifact: "deleted"}, at="2020-01-01T00:00:00Z")
            assert (stale["removed"], stale["kept"]) == ([], 1), "another copy than the one that was listed"
            assert ids((await swept(rig, artifacts={artifact: "deleted"}))["removed"]) == {artifact}
            assert node.cache.artifacts() == (await node.roots.list()).artifacts == frozenset()

    run(scenario())
