"""The state machine of the event store: random histories of commands, repeats, lost and doubled messages, cuts and kills.

It runs on one server and on three with three replicas, which answer differently (reference/jetstream-eventstore.md §1.1).
"""

from __future__ import annotations

import asyncio
import itertools
import os

import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test
from support import examples
from support.ledger import Ledger
from support.replicas import Replicas

from bus.connection import connect
from bus.server import Cluster, Server
from bus.streams import Settings, ensure_streams
from bus.subjects import EVENTS

WHICH = st.integers(0, 1)
AMOUNT = st.integers(1, 9)
NAME = st.sampled_from("abcd")
NAMES = st.lists(NAME, min_size=2, max_size=3, unique=True)
FAULTS = st.lists(st.sampled_from(["none", "none", "lose", "drop-ack", "twice", "late"]), max_size=3)
READS = st.lists(st.sampled_from(["none", "none", "lose", "drop-answer", "twice", "late", "stale", "stale"]), max_size=3)


class World:
    """One server, or three, and one connection for all examples; each example has a project of its own."""

    def __init__(self, place: Server | Cluster) -> None:
        self.place = place
        self.loop = uvloop.new_event_loop()
        self.projects = (f"p{i}" for i in itertools.count())
        self.nc = self.do(connect(place.url, name="test", on_closed=lambda: None))
        replicas = len(place.servers) if isinstance(place, Cluster) else 1
        self.do(ensure_streams(self.nc, settings=Settings(replicas=replicas)))
        self.replicas = Replicas(self.nc, place, EVENTS) if isinstance(place, Cluster) else None

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def kill(self, which: int | None) -> None:
        """Kill a server and start it again while commands go on. ``which`` is one of a cluster's; None is the leader of the log."""
        if isinstance(self.place, Server):
            self.place.kill()
            self.place.start()
            return
        index = await asyncio.to_thread(self.place.leader_of, EVENTS) if which is None else which
        index = 0 if index is None else index
        self.place.kill(index)
        await asyncio.to_thread(self.place.restart, index)

    async def settled(self) -> None:
        """A replica that was just started again may lag, and reads may be answered by any of them."""
        if self.replicas is not None:
            await self.replicas.settled()

    def close(self) -> None:
        self.do(self.nc.close())
        self.loop.close()


class Histories(RuleBasedStateMachine):
    """Two stores, four counters, and everything that can go wrong between them and the log."""

    world: World
    commands = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.world.do(Ledger(self.world.nc, next(self.world.projects)).open())

    def latest(self) -> str:
        return f"c{len(self.ledger.given) - 1}"

    @rule(target=commands, which=WHICH, amount=AMOUNT, name=NAME, faults=FAULTS, reads=READS)
    def add(self, which, amount, name, faults, reads):
        self.ledger.inject(which, faults, reads)
        self.world.do(self.ledger.give(which, amount, [name]))
        return self.latest()

    @rule(target=commands, which=WHICH, amount=AMOUNT, names=NAMES, faults=FAULTS, reads=READS)
    def add_to_several(self, which, amount, names, faults, reads):
        self.ledger.inject(which, faults, reads)
        self.world.do(self.ledger.give(which, amount, names))
        return self.latest()

    @rule(which=WHICH, command=commands, faults=FAULTS, reads=READS)
    def repeat(self, which, command, faults, reads):
        self.ledger.inject(which, faults, reads)
        self.world.do(self.ledger.give(which, 0, [], command))

    @rule(target=commands, adds=st.lists(st.tuples(WHICH, AMOUNT, NAME), min_size=2, max_size=6), faults=FAULTS, reads=READS)
    def add_at_once(self, adds, faults, reads):
        first = len(self.ledger.given)
        self.ledger.inject(0, faults, reads)

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
        self.world.do(self.world.settled())
        self.world.do(self.ledger.check())
        self.world.do(self.ledger.close())


class Disasters(Histories):
    """The same, while connections are cut and servers are killed."""

    commands = Bundle("commands")

    @rule(which=WHICH, amount=AMOUNT, name=NAME)
    def cut_the_connection(self, which, amount, name):
        async def cut() -> None:
            command = asyncio.create_task(self.ledger.give(which, amount, [name]))
            await asyncio.sleep(0)
            await self.world.nc.force_reconnect()
            await command

        self.world.do(cut())

    @rule(which=WHICH, amount=AMOUNT, names=NAMES, turns=st.integers(0, 3), server=st.integers(0, 2))
    def kill_a_server(self, which, amount, names, turns, server):
        self._kill(server, which, amount, names, turns)

    def _kill(self, server, which, amount, names, turns):
        async def kill() -> None:
            commands = [asyncio.create_task(self.ledger.give(which, amount, [name])) for name in names]
            commands.append(asyncio.create_task(self.ledger.give(1 - which, amount, names)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.world.kill(server)
            await asyncio.gather(*commands)

        self.world.do(kill())


class Elections(Disasters):
    """The same on a replicated log; its leader is killed in every example, however few they are."""

    commands = Bundle("commands")

    @initialize(which=WHICH, turns=st.integers(0, 3))
    def lose_the_leader_first(self, which, turns):
        self._kill(None, which, 1, ["a", "b"], turns)


def histories(machine: type[Histories], world: World, factor: float, steps: int) -> None:
    """Run ``machine`` as often as the profile says, times ``factor``; then compare the replicas, where there are several.

    The same examples every time, except by night.
    """
    chosen = type(machine.__name__, (machine,), {"world": world})
    run_state_machine_as_test(
        chosen,
        settings=settings(
            examples.times(factor),
            stateful_step_count=steps,
            derandomize=os.environ.get("STRAND_EXAMPLES") != "night",
            database=None,
            **examples.UNTIMED,
        ),
    )
    if world.replicas is not None:
        assert world.do(world.replicas.check()) > 0
