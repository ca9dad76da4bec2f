"""What heartbeats change: a node that comes back is known again, and a disk that fills up closes the gate between two hellos."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.waiting import eventually

from bus.heartbeat import beat
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Node
from domain.nodes.storage_modes import StorageMode
from handlers.control import Deadlines


async def beats_until(place, pct: float, mode: StorageMode) -> None:
    """Beat, as an agent does, until the node is in that mode, for itself and for whoever places snapshots."""

    async def reached() -> bool:
        await beat(place.nc, "node-1", {"storage_pct": pct})
        node = await place.get(Node, "node-1", SYSTEM_PROJECT)
        return node.storage is mode and place.plane.control.fleet.nodes["node-1"].storage_mode == mode.value

    await eventually(reached)


async def storage_events(place) -> int:
    commits = await place.plane.control.store.read(SYSTEM_PROJECT, "node", "node-1")
    return sum(event["type"] == "node.storage-mode-changed" for commit in commits for event in commit.events)


@pytest.mark.quick
def test_a_disk_that_fills_up_between_hellos_blocks_snapshots_until_it_has_room(at) -> None:
    async def test(place) -> None:
        sandbox = await place.sandbox(await place.template())
        await beats_until(place, 84.9, StorageMode.WARN)
        await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10})
        await beats_until(place, 85, StorageMode.REJECT)
        with pytest.raises(Refused) as refused:
            await place.do("snapshot.create", {"sandbox_id": sandbox})
        assert (refused.value.code, refused.value.details["mode"]) == ("storage.blocked", "reject")
        before = await storage_events(place)
        for pct in (85.1, 86, 94):
            await beat(place.nc, "node-1", {"storage_pct": pct})
        await beats_until(place, 96, StorageMode.DELETE_ONLY)
        assert await storage_events(place) == before + 1, "only crossing a limit is an event"
        await beats_until(place, 20, StorageMode.HEALTHY)
        await place.do("snapshot.create", {"sandbox_id": sandbox, "wait_s": 10})

    at(test, Deadlines(storage_ease_s=0))


@pytest.mark.quick
def test_a_disk_that_hovers_at_a_limit_is_believed_to_have_room_only_when_that_lasts(at) -> None:
    async def test(place) -> None:
        liveness = place.plane._liveness
        await beats_until(place, 90, StorageMode.REJECT)
        before, node = await storage_events(place), place.plane.control.fleet.nodes["node-1"]
        start = datetime.now(UTC)
        for second in range(0, 101, 10):
            place.plane.control.clock = lambda second=second: start + timedelta(seconds=second)
            mode = StorageMode.WARN if second % 20 else StorageMode.REJECT
            assert not liveness._changed(node, mode)
        place.plane.control.clock = lambda: start + timedelta(seconds=200)
        assert not liveness._changed(node, StorageMode.WARN)
        place.plane.control.clock = lambda: start + timedelta(seconds=260)
        await beats_until(place, 80, StorageMode.WARN)
        assert await storage_events(place) == before + 1

    at(test)


@pytest.mark.quick
def test_a_silent_nodes_storage_is_unknown_and_known_again_with_its_next_beat(at) -> None:
    async def test(place) -> None:
        await beats_until(place, 10, StorageMode.HEALTHY)

        async def unknown() -> bool:
            node = await place.get(Node, "node-1", SYSTEM_PROJECT)
            return (node.status, node.storage) == ("offline", StorageMode.UNKNOWN)

        await eventually(unknown, within=15)
        assert place.plane.control.fleet.nodes["node-1"].storage_mode == "unknown"
        await beats_until(place, 10, StorageMode.HEALTHY)
        assert (await place.get(Node, "node-1", SYSTEM_PROJECT)).status == "ready"

    at(test, Deadlines(node_dead_s=0.5))


@pytest.mark.quick
def test_a_node_that_speaks_before_the_index_has_its_enrolment_is_believed(at) -> None:
    """Nobody would ask it again, and a node that nothing is known of builds and runs nothing."""

    async def test(place) -> None:
        fleet = place.plane.control.fleet
        fleet.nodes.pop("node-1")  # as if the log were read no further than to here
        await place.node.hello(cpu=77)
        await eventually(lambda: is_described(place))

    async def is_described(place) -> bool:
        return (await place.get(Node, "node-1", SYSTEM_PROJECT)).capacity.cpu == 77

    at(test)
