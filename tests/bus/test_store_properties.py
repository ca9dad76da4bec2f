"""The promises of design.md §10 hold in random histories of commands, repeats, lost and doubled messages, cuts and kills."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule, run_state_machine_as_test
from support.bus import connected
from support.ledger import Ledger
from support.waiting import eventually, run

from bus.connection import connect
from bus.server import Server
from bus.streams import ensure_streams

WHICH = st.integers(0, 1)
AMOUNT = st.integers(1, 9)
NAME = st.sampled_from("abcd")
NAMES = st.lists(NAME, min_size=2, max_size=3, unique=True)
FAULTS = st.lists(st.sampled_from(["none", "none", "lose", "drop-ack", "twice", "late"]), max_size=3)


class World:
    """One server and one connection for all examples; each example has a project of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.loop = uvloop.new_event_loop()
        self.projects = (f"p{i}" for i in itertools.count())
        self.nc = self.do(connect(server.url, name="test", on_closed=lambda: None))
        self.do(ensure_streams(self.nc))

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.do(self.nc.close())
        self.loop.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("nats")) as server:
        world = World(server)
        yield world
        world.close()


class Histories(RuleBasedStateMachine):
    """Two stores, four counters, and everything that can go wrong between them and the log."""

    world: World
    commands = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.world.do(Ledger(self.world.nc, next(self.world.projects)).open())

    def latest(self) -> str:
        return f"c{len(self.ledger.given) - 1}"

    @rule(target=commands, which=WHICH, amount=AMOUNT, name=NAME, faults=FAULTS)
    def add(self, which, amount, name, faults):
        self.ledger.inject(which, faults)
        self.world.do(self.ledger.give(which, amount, [name]))
        return self.latest()

    @rule(target=commands, which=WHICH, amount=AMOUNT, names=NAMES, faults=FAULTS)
    def add_to_several(self, which, amount, names, faults):
        self.ledger.inject(which, faults)
        self.world.do(self.ledger.give(which, amount, names))
        return self.latest()

    @rule(which=WHICH, command=commands, faults=FAULTS)
    def repeat(self, which, command, faults):
        self.ledger.inject(which, faults)
        self.world.do(self.ledger.give(which, 0, [], command))

    @rule(target=commands, adds=st.lists(st.tuples(WHICH, AMOUNT, NAME), min_size=2, max_size=6), faults=FAULTS)
    def add_at_once(self, adds, faults):
        first = len(self.ledger.given)
        self.ledger.inject(0, faults)

        async def at_once() -> None:
            await asyncio.gather(*[self.ledger.give(which, amount, [name]) for which, amount, name in adds])

        self.world.do(at_once())
        return multiple(*[f"c{i}" for i in range(first, len(self.ledger.given))])

    @rule(target=commands, which=WHICH, amount=AMOUNT, name=NAME, turns=st.integers(0, 12))
    def give_up_half_way(self, which, amount, name, turns):
        async def half_way() -> None:
            command = asyncio.create_task(self.ledger.give(which, amount, [name]))
            for _ in range(turns):
                await asyncio.sleep(0)
            command.cancel()
            await asyncio.wait([command])

        before = len(self.ledger.given)
        self.world.do(half_way())
        return multiple(*[f"c{i}" for i in range(before, len(self.ledger.given))])

    @rule()
    def start_afresh(self):
        async def afresh() -> None:
            await self.ledger.close()
            await self.ledger.open()

        self.world.do(afresh())

    def teardown(self):
        self.world.do(self.ledger.check())
        self.world.do(self.ledger.close())


class Disasters(Histories):
    """The same, while connections are cut and the server is killed."""

    commands = Bundle("commands")

    @rule(which=WHICH, amount=AMOUNT, name=NAME)
    def cut_the_connection(self, which, amount, name):
        async def cut() -> None:
            command = asyncio.create_task(self.ledger.give(which, amount, [name]))
            await asyncio.sleep(0)
            await self.world.nc.force_reconnect()
            await command

        self.world.do(cut())

    @rule(which=WHICH, amount=AMOUNT, names=NAMES, turns=st.integers(0, 3))
    def kill_the_server(self, which, amount, names, turns):
        async def kill() -> None:
            commands = [asyncio.create_task(self.ledger.give(which, amount, [name])) for name in names]
            commands.append(asyncio.create_task(self.ledger.give(1 - which, amount, names)))
            for _ in range(turns):
                await asyncio.sleep(0)
            self.world.server.kill()
            self.world.server.start()
            await asyncio.gather(*commands)

        self.world.do(kill())


def histories(machine, world, examples, steps) -> None:
    chosen = type(machine.__name__, (machine,), {"world": world})
    run_state_machine_as_test(
        chosen,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_is_lost_or_doubled_in_short_histories(world):
    histories(Histories, world, examples=12, steps=12)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_in_long_histories(world):
    histories(Histories, world, examples=20, steps=30)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_connections_are_cut_and_the_server_is_killed(world):
    histories(Disasters, world, examples=10, steps=15)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_leaders_of_a_replicated_log_are_killed(cluster):
    async def scenario() -> None:
        async with connected(cluster) as nc:
            ledger = await Ledger(nc, "p").open(3, cache_size=100)
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
            for _ in range(6):  # reads are answered by any of the three
                await eventually(lambda: settled(ledger), within=20)
            await ledger.close()

    run(scenario())


async def settled(ledger: Ledger) -> bool:
    """A replica that was just restarted may lag; what it then has must be the same."""
    await ledger.check()
    return True
