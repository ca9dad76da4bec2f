"""The promises of design.md §10 hold in random histories of commands, repeats, lost and doubled messages, cuts and kills."""

from __future__ import annotations

import asyncio

import pytest
from support import examples
from support.bus import connected
from support.ledger import Ledger
from support.machines import Disasters, Elections, Histories, World, histories
from support.replicas import Replicas
from support.waiting import eventually, run

from bus.server import Cluster, Server

pytestmark = pytest.mark.timeout(300 * examples.times(1).max_examples // 40)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One server."""
    with Server(tmp_path_factory.mktemp("nats")) as server:
        world = World(server)
        yield world
        world.close()


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    """Three servers, and the log on all of them."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        world = World(cluster)
        yield world
        world.close()


def test_nothing_is_lost_or_doubled_in_short_histories(world):
    histories(Histories, world, 0.3, steps=12)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_in_long_histories(world):
    histories(Histories, world, 0.5, steps=30)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_connections_are_cut_and_the_server_is_killed(world):
    histories(Disasters, world, 0.25, steps=15)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_in_histories_of_a_replicated_log_and_its_replicas_are_equal(replicated):
    histories(Histories, replicated, 0.2, steps=15)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_servers_of_a_replicated_log_are_killed_and_its_replicas_are_equal(replicated):
    histories(Elections, replicated, 0.05, steps=6)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_leaders_of_a_replicated_log_are_killed(cluster):
    async def scenario() -> None:
        async with connected(cluster) as nc:
            ledger = await Ledger(nc, "p").open(3, cache_size=100)
            replicas = Replicas(nc, cluster, "EVENTS")
            stop = asyncio.Event()

            async def writer(number: int) -> None:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    ledger.inject(number % 3, [("none", "drop-ack", "none", "twice", "late", "lose")[(turn + number) % 6]])
                    names = ["abcd"[number % 4]] if turn % 4 else [f"own{number}", "abcd"[turn % 4]]
                    await ledger.give(number % 3, 1, names)
                    if turn % 5 == 0:
                        await ledger.give((number + 1) % 3, 0, [], f"c{(turn * 7 + number) % len(ledger.given)}")

            writers = [asyncio.create_task(writer(number)) for number in range(8)]
            for _ in range(2):
                before = len(ledger.told)
                await eventually(lambda before=before: len(ledger.told) >= before + 60, within=20)
                leader = await asyncio.to_thread(cluster.leader_of, "EVENTS")
                cluster.kill(leader)
                before = len(ledger.told)
                await eventually(lambda before=before: len(ledger.told) >= before + 60, within=30)
                await asyncio.to_thread(cluster.restart, leader)
            stop.set()
            await asyncio.gather(*writers)
            for command in sorted(ledger.unknown):
                await ledger.give(0, 0, [], command)
            await replicas.settled()
            for _ in range(6):  # reads are answered by any of the three
                await ledger.check()
            assert await replicas.check() > 0
            await ledger.close()

    run(scenario())
