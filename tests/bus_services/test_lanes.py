"""Lanes and reports: order, repetition, failure, and what a killed server or agent leaves to the next one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import orjson
from support.bus import connected

from bus import lanes
from bus.dead import DeadLetter, DeadLetters
from bus.lanes import LaneKeeper, LaneReader
from bus.reader import Work
from bus.requests import call
from bus.streams import Settings
from domain.kernel.errors import Refused
from domain.nodes.orders import Order, Verb

QUICK = Work(tries=3, pauses=(0.01,), ack_wait=30, grace=0.2)


def order(name: str, key: str = "k", verb: Verb = Verb.SANDBOX_STOP) -> Order:
    return Order(id=name, verb=verb, project="p", key=key, process="sandbox", process_id=key, at=datetime.now(UTC), body={})


class Worker:
    """A handler that notes what it does and can be made to wait or fail."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.faults: dict[str, list[Exception]] = {}

    def hold(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def __call__(self, order: Order, ack: lanes.Ack) -> None:
        self.begun.append(order.id)
        if order.id in self.gates:
            await self.gates[order.id].wait()
        if self.faults.get(order.id):
            raise self.faults[order.id].pop(0)
        self.ended.append(order.id)


async def left(nc, stream="LANES-0") -> int:
    return (await call(nc, f"STREAM.INFO.{stream}"))["state"]["messages"]


async def dead(nc) -> list[DeadLetter]:
    return await DeadLetters(nc).list()


def test_orders_of_one_key_run_in_order_and_other_keys_beside_them(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        gate = worker.hold("a1")
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK) as reader:
            for name in ("a1", "a2", "b1", "a3", "b2"):
                await lanes.send(nc, "n1", order(name, key=name[0]))
            await eventually(lambda: worker.ended == ["b1", "b2"])
            assert worker.begun == ["a1", "b1", "b2"]
            assert reader.in_hand == 3
            gate.set()
            await eventually(lambda: worker.ended == ["b1", "b2", "a1", "a2", "a3"])
            await eventually(lambda: left_is(nc, 0))

    run(main())


async def left_is(nc, count: int) -> bool:
    return await left(nc) == count


def test_an_exec_waits_for_earlier_orders_of_its_key_and_holds_none_back(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        start, exec_ = worker.hold("start"), worker.hold("exec")
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK):
            await lanes.send(nc, "n1", order("start"))
            await lanes.send(nc, "n1", order("exec", verb=Verb.SANDBOX_EXEC))
            await lanes.send(nc, "n1", order("stop"))
            await lanes.send(nc, "n1", order("other", key="other"))
            await eventually(lambda: worker.ended == ["other"])
            assert worker.begun == ["start", "other"]
            start.set()
            await eventually(lambda: "stop" in worker.ended)
            assert "exec" in worker.begun
            assert "exec" not in worker.ended
            exec_.set()
            await eventually(lambda: "exec" in worker.ended)

    run(main())


def test_an_order_sent_twice_is_carried_out_once(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK):
            assert not (await lanes.send(nc, "n1", order("a"))).duplicate
            assert (await lanes.send(nc, "n1", order("a"))).duplicate
            await lanes.send(nc, "n1", order("b"))
            await eventually(lambda: worker.ended == ["a", "b"])

    run(main())


def test_a_failing_order_is_tried_again_before_the_next_of_its_key(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        worker.faults["a1"] = [RuntimeError("once"), Refused("disk.busy", "twice", retryable=True)]
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK):
            await lanes.send(nc, "n1", order("a1"))
            await lanes.send(nc, "n1", order("a2"))
            await eventually(lambda: worker.ended == ["a1", "a2"])
            assert worker.begun == ["a1", "a1", "a1", "a2"]
            assert await dead(nc) == []

    run(main())


def test_a_poisoned_order_ends_in_dead_with_its_reason_and_does_not_block_the_lane(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        worker.faults["a1"] = [RuntimeError("bad\nluck")] * 9
        worker.faults["a2"] = [Refused("sandbox.illegal-state", "no")]
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK):
            await nc.publish("strand.lane.n1.nonsense", b"{}")
            for name in ("a1", "a2", "a3"):
                await lanes.send(nc, "n1", order(name))
            await eventually(lambda: worker.ended == ["a3"])
            assert worker.begun == ["a1"] * 3 + ["a2", "a3"]

            async def reasons() -> list[str]:
                return [letter.reason for letter in await dead(nc)]

            await eventually(lambda: three(reasons))
            assert [reason.split(":")[0] for reason in await reasons()] == ["undecodable", "a1", "a2"]
            assert (await reasons())[1:] == ["a1: RuntimeError: bad luck", "a2: sandbox.illegal-state: no"]
            await eventually(lambda: left_is(nc, 0))

    run(main())


async def three(reasons) -> bool:
    return len(await reasons()) == 3


def test_a_handler_may_ack_early_give_back_and_terminate(connecting, run, eventually) -> None:
    async def main() -> None:
        seen: list[str] = []
        stay = asyncio.Event()

        async def handle(order: Order, ack: lanes.Ack) -> None:
            seen.append(order.id)
            if order.id == "early":
                await ack.ack()
                await stay.wait()
            elif order.id == "back" and seen.count("back") < 3:
                await ack.nak(0.01)
            elif order.id == "never":
                await ack.term("not for me")

        async with connecting(streams=True) as nc, LaneReader(nc, "n1", handle, work=QUICK):
            await lanes.send(nc, "n1", order("early", key="e"))
            await lanes.send(nc, "n1", order("back"))
            await lanes.send(nc, "n1", order("never"))
            await eventually(lambda: left_is(nc, 0))
            assert seen == ["early", "back", "back", "back", "never"]
            stay.set()

    run(main())


def test_a_killed_server_loses_no_order_and_repeats_none(connecting, server, run, eventually) -> None:
    """Lane consumers keep their state in memory: they are gone after the kill and must be attached again."""

    async def main() -> None:
        worker = Worker()
        gate = worker.hold("a1")
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK) as reader:
            for name in ("a1", "a2"):
                await lanes.send(nc, "n1", order(name))
            await lanes.send(nc, "n1", order("done", key="d"))
            await eventually(lambda: worker.ended == ["done"] and reader.in_hand == 2)
            server.kill()
            sending = asyncio.create_task(lanes.send(nc, "n1", order("a3")))
            await asyncio.to_thread(server.start)
            await sending
            await eventually(lambda: reader.in_hand == 3, within=20)
            gate.set()
            await eventually(lambda: left_is(nc, 0), within=20)
            assert worker.begun == ["done", "a1", "a2", "a3"] or worker.begun == ["a1", "done", "a2", "a3"]

    run(main())


def test_an_order_finished_while_the_server_is_away_is_not_repeated(connecting, server, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        gate = worker.hold("a1")
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK):
            await lanes.send(nc, "n1", order("a1"))
            await eventually(lambda: worker.begun == ["a1"])
            server.kill()
            await eventually(lambda: not nc.is_connected)
            gate.set()
            await eventually(lambda: worker.ended == ["a1"])
            await asyncio.to_thread(server.start)
            await eventually(lambda: nc.is_connected)
            await eventually(lambda: left_is(nc, 0), within=20)
            assert worker.begun == ["a1"]

    run(main())


def test_the_next_agent_gets_what_a_killed_one_had_in_hand_at_once_and_in_order(connecting, run, eventually) -> None:
    async def main() -> None:
        first, second = Worker(), Worker()
        first.hold("a1")
        async with connecting(streams=True) as nc:
            async with connecting() as killed:
                reader = LaneReader(killed, "n1", first, work=QUICK)
                await reader.start()
                for name in ("a1", "a2", "b1"):
                    await lanes.send(nc, "n1", order(name, key=name[0]))
                await eventually(lambda: first.begun == ["a1", "b1"] and first.ended == ["b1"])
                await eventually(lambda: left_is(nc, 2))
                await killed.close()  # as a kill: nothing is given back
                await reader.close()
            await lanes.send(nc, "n1", order("a3", key="a"))
            async with LaneReader(nc, "n1", second, work=QUICK):
                await eventually(lambda: second.ended == ["a1", "a2", "a3"], within=5)
        assert first.ended == ["b1"]

    run(main())


def test_closing_gives_back_what_is_not_done(connecting, run, eventually) -> None:
    async def main() -> None:
        first, second = Worker(), Worker()
        first.hold("a1")
        async with connecting(streams=True) as nc:
            async with LaneReader(nc, "n1", first, work=QUICK):
                await lanes.send(nc, "n1", order("a1"))
                await eventually(lambda: first.begun == ["a1"])
            async with LaneReader(nc, "n1", second, work=QUICK):
                await eventually(lambda: second.ended == ["a1"])

    run(main())


def test_an_order_that_kills_its_agent_is_given_up(connecting, run, eventually) -> None:
    async def main() -> None:
        counts: dict[str, int] = {"killer": lanes.CRASHES}
        worker = Worker()

        async def begun(order: Order) -> int:
            counts[order.id] = counts.get(order.id, 0) + 1
            return counts[order.id]

        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK, begun=begun):
            await lanes.send(nc, "n1", order("killer"))
            await lanes.send(nc, "n1", order("a1"))
            await eventually(lambda: worker.begun == ["a1"])
            await eventually(lambda: left_is(nc, 0))
            assert "begun 3 times" in (await dead(nc))[0].reason

    run(main())


def test_messages_in_hand_are_bounded(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        gate = worker.hold("o0")
        async with connecting(streams=True) as nc:
            for number in range(40):
                await lanes.send(nc, "n1", order(f"o{number}"))
            async with LaneReader(nc, "n1", worker, work=Work(limit=8, parallel=2)) as reader:
                await eventually(lambda: reader.in_hand == 8)
                gate.set()
                await eventually(lambda: len(worker.ended) == 40)
                assert worker.ended == [f"o{number}" for number in range(40)]

    run(main())


def test_lanes_are_apart_also_when_sharded(server, run, eventually) -> None:
    async def main() -> None:
        one, two = Worker(), Worker()
        async with (
            connected(server, settings=Settings(shards=4)) as nc,
            LaneReader(nc, "n1", one, shards=4, work=QUICK),
            LaneReader(nc, "n2", two, shards=4, work=QUICK),
        ):
            await lanes.send(nc, "n1", order("a"), shards=4)
            await lanes.send(nc, "n2", order("b"), shards=4)
            await eventually(lambda: (one.ended, two.ended) == (["a"], ["b"]))

    run(main())


def test_a_deleted_consumer_is_attached_again(connecting, run, eventually) -> None:
    async def main() -> None:
        worker = Worker()
        async with connecting(streams=True) as nc, LaneReader(nc, "n1", worker, work=QUICK) as reader:
            await reader.ready()

            async def pulled() -> bool:
                return (await call(nc, "CONSUMER.INFO.LANES-0.n1"))["num_waiting"] == 1

            await eventually(pulled)
            await call(nc, "CONSUMER.DELETE.LANES-0.n1")
            await lanes.send(nc, "n1", order("a"))
            await eventually(lambda: worker.ended == ["a"])

    run(main())


def test_a_removed_lane_is_empty_for_its_successor(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await lanes.attach(nc, "n1", fresh=True)
            await lanes.send(nc, "n1", order("a"))
            await lanes.send(nc, "n2", order("b"))
            await lanes.remove(nc, "n1")
            await lanes.remove(nc, "n1")
            assert await left(nc) == 1

    run(main())


def test_the_control_plane_attaches_only_nodes_it_knows(connecting, run) -> None:
    async def main() -> None:
        async def admit(node: str) -> bool:
            return node == "n1"

        async with connecting(streams=True) as nc, LaneKeeper(nc, admit):
            ours = orjson.loads((await nc.request("strand.attach.n1", b'{"fresh":true}', timeout=5)).data)
            assert ours["ok"] is True
            other = orjson.loads((await nc.request("strand.attach.n2", b"{}", timeout=5)).data)
            assert other["error"]["code"] == "node.not-found"
            assert (await call(nc, "CONSUMER.NAMES.LANES-0"))["consumers"] == ["n1"]
            forged = await nc.subscribe("strand.evt.>")
            await nc.publish("strand.attach.n1", b"{}", reply="strand.evt.p.sandbox.x")
            await nc.request("strand.attach.n1", b"{}", timeout=5)
            assert forged.pending_msgs == 0

    run(main())
