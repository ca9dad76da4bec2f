"""Following the log: nothing is missed, nothing comes twice or out of order, whatever happens to consumer, connection or server."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.bus import connected
from support.things import PROJECT, Counter, adding, cause
from support.waiting import eventually, run

from bus.commit import Commit
from bus.direct import Reader
from bus.fast import open_publisher
from bus.store import Store
from bus.subjects import ALL_EVENTS, event
from bus.subscription import DurableReader, Tail
from bus.tail import WINDOW
from domain.kernel.errors import Refused


async def add(store: Store, count: int, name: str = "a", start: int = 0) -> None:
    """``count`` commits of one counter."""
    for i in range(start, start + count):
        await store.transact(Counter, PROJECT, name, adding(1, name), cause(f"{name}-{i}"))


class Seen:
    """Collects what a subscription hands over."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.sizes: list[int] = []

    async def batch(self, commits) -> None:
        self.commits += commits
        self.sizes.append(len(commits))

    async def one(self, commit: Commit) -> None:
        self.commits.append(commit)

    @property
    def seqs(self) -> list[int]:
        return [commit.seq for commit in self.commits]


def with_store(server, body):
    async def scenario() -> None:
        async with connected(server) as nc:
            store = await Store.open(nc)
            await body(nc, store, Seen())
            await store.close()

    run(scenario())


def test_a_tail_hands_over_the_past_and_then_the_present_in_order(server):
    async def body(nc, store, seen) -> None:
        await add(store, 30)
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch) as tail:
            await asyncio.wait_for(tail.caught_up.wait(), 5)
            assert seen.seqs == list(range(1, 31))
            await add(store, 30, start=30)
            await eventually(lambda: tail.seq == 60)
        assert seen.seqs == list(range(1, 61))
        assert [commit.version for commit in seen.commits][:3] == [2, 3, 4]

    with_store(server, body)


def test_a_tail_begins_after_its_position_and_sees_its_filters_only(server):
    async def body(nc, store, seen) -> None:
        await asyncio.gather(*[add(store, 5, name) for name in "abc"])
        async with Tail(nc, 6, [event(PROJECT, "counter", "a"), event(PROJECT, "counter", "c")], seen.batch) as tail:
            await asyncio.wait_for(tail.caught_up.wait(), 5)
        assert seen.seqs == [commit.seq for commit in await store.read_all(6) if commit.id in "ac"]
        assert len(seen.seqs) > 3

    with_store(server, body)


def test_a_tail_of_an_empty_log_is_caught_up_at_once(server):
    async def body(nc, _store, seen) -> None:
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch) as tail:
            await asyncio.wait_for(tail.caught_up.wait(), 5)
            assert (tail.seq, seen.seqs) == (0, [])

    with_store(server, body)


def test_a_tail_that_lingers_waits_for_more_until_somebody_hurries(server):
    async def body(nc, store, seen) -> None:
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch, linger_s=3600) as tail:
            await asyncio.wait_for(tail.caught_up.wait(), 5)
            await add(store, 5)
            await eventually(lambda: len(tail._buffer) == 5)
            assert seen.commits == []
            tail.hurry()
            await eventually(lambda: seen.sizes == [5])
            await add(store, 1, start=5)
            await eventually(lambda: seen.sizes == [5, 1])  # who waited once is likely to again

    with_store(server, body)


def test_a_tail_does_not_linger_over_the_past(server):
    async def body(nc, store, seen) -> None:
        await add(store, 5)
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch, linger_s=3600):
            await eventually(lambda: len(seen.commits) == 5)

    with_store(server, body)


def test_a_slow_handler_gets_larger_batches_and_a_bounded_buffer(server):
    async def body(nc, store, seen) -> None:
        await asyncio.gather(*[store.publisher.publish(f"strand.evt.p.x.c{i % 100}", b"%d" % i, timeout=20) for i in range(WINDOW + 1000)])
        gate, highest = asyncio.Event(), 0

        async def slow(batch) -> None:
            nonlocal highest
            await gate.wait()
            highest = max(highest, len(tail._buffer))
            await seen.batch(batch)

        tail = await Tail(nc, 0, [ALL_EVENTS], slow, decode=lambda _data, seq: seq).start()
        await eventually(lambda: len(tail._buffer) >= WINDOW * 3 // 4)
        gate.set()
        await asyncio.wait_for(tail.caught_up.wait(), 10)
        assert seen.commits == list(range(1, WINDOW + 1001))
        assert max(seen.sizes) == 1000
        assert highest <= WINDOW
        await tail.stop()

    with_store(server, body)


def test_what_the_handler_raises_ends_the_tail_and_comes_out_of_wait(server):
    async def body(nc, store, _seen) -> None:
        async def fails(_batch) -> None:
            raise OSError("the view's disk is full")

        await add(store, 1)
        tail = await Tail(nc, 0, [ALL_EVENTS], fails).start()
        with pytest.raises(OSError, match="disk is full"):
            await asyncio.wait_for(tail.wait(), 5)
        assert tail.seq == 0

    with_store(server, body)


def test_a_tail_survives_a_deleted_consumer_a_cut_connection_and_a_killed_server(server):
    async def body(nc, store, seen) -> None:
        js = nc.jetstream()
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch) as tail:
            await add(store, 20)
            await asyncio.wait_for(tail.caught_up.wait(), 5)
            for consumer in await js.consumers_info("EVENTS"):
                await js.delete_consumer("EVENTS", consumer.name)
            await add(store, 20, start=20)
            await eventually(lambda: tail.seq == 40)
            await nc.force_reconnect()
            await add(store, 20, start=40)
            await eventually(lambda: tail.seq == 60)
            server.kill()
            server.start()
            await add(store, 20, start=60)
            await eventually(lambda: tail.seq == 80)
        assert seen.seqs == list(range(1, 81))

    with_store(server, body)


def test_a_lost_delivery_is_noticed_and_read_again(server):
    async def body(nc, store, seen) -> None:
        async with Tail(nc, 0, [ALL_EVENTS], seen.batch) as tail:
            await asyncio.wait_for(tail.caught_up.wait(), 5)
            await asyncio.wait_for(tail._pull.attached.wait(), 5)
            pull = tail._pull
            original, dropped = pull._on_delivery, []

            def lossy(message):
                if not dropped:
                    dropped.append(message)
                    return None
                return original(message)

            pull._on_delivery = lossy
            await add(store, 5)
            await eventually(lambda: tail.seq == 5)
        assert dropped
        assert seen.seqs == [1, 2, 3, 4, 5]

    with_store(server, body)


def test_a_durable_reader_remembers_its_position_on_the_server(server):
    async def body(nc, store, seen) -> None:
        await add(store, 10)
        async with DurableReader(nc, "process", [ALL_EVENTS], seen.one):
            await eventually(lambda: len(seen.commits) == 10)
            await eventually(lambda: acked(nc, 10))
        await add(store, 5, start=10)
        again = Seen()
        async with DurableReader(nc, "process", [ALL_EVENTS], again.one):
            await eventually(lambda: len(again.commits) == 5)
        assert (seen.seqs, again.seqs) == (list(range(1, 11)), list(range(11, 16)))

    with_store(server, body)


async def acked(nc, seq: int) -> bool:
    return (await nc.jetstream().consumer_info("EVENTS", "process")).ack_floor.stream_seq == seq


def test_one_aggregates_commits_are_handled_in_order_while_others_go_on(server):
    async def body(nc, store, seen) -> None:
        await add(store, 3, "a")
        await add(store, 3, "b")
        gate = asyncio.Event()

        async def handle(commit: Commit) -> None:
            if commit.id == "a":
                await gate.wait()
            await seen.one(commit)

        async with DurableReader(nc, "process", [ALL_EVENTS], handle):
            await eventually(lambda: len(seen.commits) == 3)
            assert {commit.id for commit in seen.commits} == {"b"}
            gate.set()
            await eventually(lambda: len(seen.commits) == 6)
        for name in "ab":
            assert [commit.version for commit in seen.commits if commit.id == name] == [2, 3, 4]

    with_store(server, body)


def test_a_commit_that_may_wait_keeps_no_other_one_and_is_handled_in_its_order(server):
    async def body(nc, store, seen) -> None:
        patient = event(PROJECT, "counter", "a").encode()

        def reader(seconds: float) -> DurableReader:
            return DurableReader(nc, "process", [ALL_EVENTS], seen.one, patience=lambda subject: seconds * (subject == patient))

        await add(store, 3, "a")
        await add(store, 3, "b")
        async with reader(3600):
            await eventually(lambda: [commit.id for commit in seen.commits] == ["b"] * 3)
        async with reader(0.001):  # nothing was begun by the reader that has ended, and nothing is lost
            await eventually(lambda: [commit.seq for commit in seen.commits if commit.id == "a"] == [1, 2, 3])

    with_store(server, body)


def test_what_was_not_acknowledged_comes_first_and_in_order_after_a_restart(server):
    async def body(nc, store, seen) -> None:
        await add(store, 4)
        started = asyncio.Event()

        async def hang(_commit: Commit) -> None:
            started.set()
            await asyncio.Event().wait()

        async with DurableReader(nc, "process", [ALL_EVENTS], hang):
            await asyncio.wait_for(started.wait(), 5)
        await add(store, 2, start=4)
        async with DurableReader(nc, "process", [ALL_EVENTS], seen.one):
            await eventually(lambda: len(seen.commits) == 6)
        assert seen.seqs == [1, 2, 3, 4, 5, 6]

    with_store(server, body)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_ends_in_the_dead_letters(server):
    async def body(nc, store, seen) -> None:
        await add(store, 1, "flaky")
        await add(store, 1, "poison")
        await add(store, 1, "busy")
        tries: dict[str, int] = {}

        async def handle(commit: Commit) -> None:
            tries[commit.id] = tries.get(commit.id, 0) + 1
            if commit.id == "poison":
                raise ValueError("cannot be done")
            if commit.id == "flaky" and tries["flaky"] < 3:
                raise ValueError("not yet")
            if commit.id == "busy" and tries["busy"] < 6:
                raise Refused("bus.unavailable", "later", retryable=True)
            await seen.one(commit)

        async with DurableReader(nc, "process", [ALL_EVENTS], handle, attempts=3, first_pause_s=0.001):
            await eventually(lambda: len(seen.commits) == 2)
            await eventually(lambda: acked(nc, 3))
        assert sorted(commit.id for commit in seen.commits) == ["busy", "flaky"]
        assert tries == {"flaky": 3, "poison": 3, "busy": 6}
        dead = await eventually(lambda: dead_letters(nc))
        assert [(d["consumer"], d["stream_seq"], "cannot be done" in d["reason"]) for d in dead] == [("process", 2, True)]

    with_store(server, body)


async def dead_letters(nc):
    publisher = open_publisher(nc)
    reader = Reader(publisher, "DEAD")
    found = [json.loads(message.data) async for message in reader.all(">")]
    await reader.close()
    await publisher.close()
    return found


def test_a_durable_reader_survives_a_killed_server_without_losing_or_reordering(server):
    async def body(nc, store, seen) -> None:
        async with DurableReader(nc, "process", [ALL_EVENTS], seen.one):
            await add(store, 50)
            server.kill()
            server.start()
            await add(store, 50, start=50)
            await nc.force_reconnect()
            await add(store, 20, start=100)
            await eventually(lambda: len(set(seen.seqs)) == 120)
        firsts = list(dict.fromkeys(seen.seqs))
        assert firsts == list(range(1, 121))

    with_store(server, body)
