"""Liveness: who beats is seen, who stops expires, and a silent bus proves nothing about the nodes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from bus import direct, heartbeat
from bus.subjects import NODES_BUCKET


class Notes:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.expired: list[str] = []
        self.last: dict[str, datetime] = {}

    async def on_seen(self, node: str, at: datetime) -> None:
        self.seen.append(node)
        self.last[node] = at

    async def on_expired(self, node: str, last_seen: datetime) -> None:
        self.expired.append(node)
        self.last[node] = last_seen


def watching(nc, notes: Notes, dead_s: float, **more):
    return heartbeat.watch(nc, notes.on_seen, notes.on_expired, dead_s, **more)


def test_a_node_that_beats_is_seen_and_one_that_stops_expires_and_comes_back(connecting, run, eventually) -> None:
    async def main() -> None:
        notes = Notes()
        async with connecting(streams=True) as nc, watching(nc, notes, 1.5) as watch:
            async with heartbeat.beating(nc, "n1", lambda: {"pct": 7}, every_s=0.05):
                await heartbeat.beat(nc, "n2")
                await eventually(lambda: notes.expired == ["n2"])
                assert {"n1", "n2"} == set(notes.seen)
                assert watch.bodies == {"n1": {"pct": 7}}
                assert (datetime.now(UTC) - notes.last["n2"]).total_seconds() >= 1.5
            await eventually(lambda: "n1" in notes.expired)
            await heartbeat.beat(nc, "n1")
            notes.seen.clear()
            await eventually(lambda: notes.seen == ["n1"] or heartbeat.beat(nc, "n1"))
            assert "n1" in watch.bodies

    run(main())


def test_expiry_is_said_again_while_it_lasts(connecting, run, eventually) -> None:
    """Whoever is told may have failed to write it down."""

    async def main() -> None:
        notes = Notes()
        async with connecting(streams=True) as nc, watching(nc, notes, 0.1):
            await heartbeat.beat(nc, "n1")
            await eventually(lambda: notes.expired.count("n1") >= 3)

    run(main())


def test_a_watch_that_begins_later_knows_who_beat_before(connecting, run, eventually) -> None:
    async def main() -> None:
        notes = Notes()
        async with connecting(streams=True) as nc:
            await heartbeat.beat(nc, "n1", {"a": 1})
            await eventually(lambda: direct.get(nc, f"KV_{NODES_BUCKET}", last_by_subj=f"$KV.{NODES_BUCKET}.n1"))
            async with watching(nc, notes, 30) as watch:
                await eventually(lambda: notes.seen == ["n1"])
                assert watch.bodies == {"n1": {"a": 1}}

    run(main())


def test_a_node_that_ought_to_live_and_is_never_heard_expires(connecting, run, eventually) -> None:
    async def main() -> None:
        notes = Notes()
        async with connecting(streams=True) as nc, watching(nc, notes, 0.2, expected=lambda: ["n9"]):
            await eventually(lambda: notes.expired == ["n9"])
            assert notes.seen == []

    run(main())


def test_an_absent_bus_expires_nobody(connecting, server, run, eventually) -> None:
    async def main() -> None:
        notes = Notes()
        async with connecting(streams=True) as nc, watching(nc, notes, 0.6):
            async with heartbeat.beating(nc, "n1", dict, every_s=0.05):
                await eventually(lambda: notes.seen)
                begun = asyncio.get_running_loop().time()
                server.kill()
                await eventually(lambda: asyncio.get_running_loop().time() > begun + 1.5)
                await asyncio.to_thread(server.start)
                notes.seen.clear()
                await eventually(lambda: len(notes.seen) > 3)
                assert notes.expired == []
            await eventually(lambda: notes.expired)

    run(main())


def test_a_failing_or_slow_listener_and_a_senseless_body_stop_nothing(connecting, run, eventually) -> None:
    async def main() -> None:
        calls: list[str] = []
        stuck = asyncio.Event()

        async def seen(node: str, at: datetime) -> None:
            calls.append(node)
            if node == "bad":
                raise RuntimeError("no")
            if node == "slow":
                await stuck.wait()

        async with connecting(streams=True) as nc, heartbeat.watch(nc, seen, seen, 30) as watch:
            for _ in range(3):
                await nc.publish("strand.hb.bad", b"\xff{")
                await nc.publish("strand.hb.slow", b"[]")
            await heartbeat.beat(nc, "good")
            await eventually(lambda: "good" in calls)
            assert calls.count("slow") == 1
            assert watch.bodies == {"bad": {}, "slow": {}, "good": {}}

    run(main())


def test_a_node_that_cannot_say_how_it_is_goes_on_beating(connecting, run, eventually) -> None:
    async def main() -> None:
        notes, bodies = Notes(), iter([{"n": 1}, {"bad": object()}, None, {"n": 4}])

        async with (
            connecting(streams=True) as nc,
            watching(nc, notes, 30) as watch,
            heartbeat.beating(nc, "n1", lambda: next(bodies), every_s=0.01),
        ):
            await eventually(lambda: watch.bodies.get("n1") == {"n": 4})

    run(main())
