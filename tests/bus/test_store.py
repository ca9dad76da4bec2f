"""Each command acts once, on the newest state, and says the same for ever."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.bus import connected
from support.faults import FaultyPublisher
from support.things import PROJECT, START, Counter, adding, cause
from support.waiting import eventually, run

from bus.cache import Key
from bus.fast import open_publisher
from bus.store import Part, Store
from bus.verify import verify_log
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick


@asynccontextmanager
async def stores(server, count: int = 1, **settings):
    """Stores that know nothing of each other, as in separate processes."""
    async with connected(server) as nc:
        made = [Store(nc, FaultyPublisher(open_publisher(nc)), **settings) for _ in range(count)]
        yield made
        for store in made:
            await store.close()
        verdict = await verify_log(nc)
        assert verdict.ok, verdict.findings


async def add(store: Store, amount: int, command: str, name: str = "a", **more):
    return await store.transact(Counter, PROJECT, name, adding(amount, name, **more), cause(command), lambda c: {"total": c.total})


def test_what_was_decided_is_stored_and_loaded_by_another_process(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            first = await add(one, 5, "c1", note="first")
            assert (first.seq, first.changed, first.replayed, first.reply) == (1, True, False, {"total": 5})
            await add(one, 7, "c2")
            loaded = await two.load(Counter, PROJECT, "a")
            assert (loaded.aggregate.total, loaded.aggregate.notes, loaded.version, loaded.seq) == (12, ["first"], 3, 2)
            assert loaded.commands == {"c1": 1, "c2": 2}
            assert loaded.aggregate == (await one.load(Counter, PROJECT, "a")).aggregate

    run(scenario())


def test_what_does_not_exist_is_none_and_costs_no_memory(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            loaded = await store.load(Counter, PROJECT, "nobody")
            assert (loaded.aggregate, loaded.version, loaded.seq, loaded.commands) == (None, 0, 0, {})
            assert len(store._cache) == 0

    run(scenario())


def test_a_stale_append_writes_nothing_and_is_decided_again_on_the_newest_state(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            await add(one, 1, "c1")
            await two.load(Counter, PROJECT, "a")
            await add(one, 1, "c2")
            seen = []

            def decide(counter):
                seen.append(counter.total)
                counter.add(START, 1)
                return counter

            committed = await two.transact(Counter, PROJECT, "a", decide, cause("c3"))
            assert (seen, committed.seq, committed.aggregate.total) == ([1, 2], 3, 3)

    run(scenario())


def test_a_repeated_command_acts_once_and_gives_the_stored_answer_in_every_process(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            first = await add(one, 5, "c1")
            await add(one, 1, "c2")
            for store in (one, two):
                again = await add(store, 5, "c1")
                assert (again.seq, again.replayed, again.changed, again.reply) == (first.seq, True, False, {"total": 5})
                assert again.aggregate.total == 6

    run(scenario())


def test_the_same_command_id_with_another_body_is_refused(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 5, "c1")
            with pytest.raises(Refused) as refused:
                await store.transact(Counter, PROJECT, "a", adding(6, "a"), cause("c1", digest="other"))
            assert refused.value.code == "command.mismatch"

    run(scenario())


def test_a_decision_that_records_nothing_stores_nothing(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 5, "c1")
            idle = await add(store, 0, "c2")
            assert (idle.seq, idle.changed, idle.reply) == (1, False, {"total": 5})
            assert await store.position() == 1

    run(scenario())


def test_a_refusal_is_only_given_on_the_newest_state(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            await add(one, 10, "c1", limit=10)
            await two.load(Counter, PROJECT, "a")
            await add(one, -10, "c2")
            assert (await add(two, 10, "c3")).aggregate.total == 10
            with pytest.raises(Refused, match="over 10"):
                await add(one, 1, "c4")

    run(scenario())


def test_nothing_to_do_is_only_said_on_the_newest_state(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):

            def drain(counter):
                counter.add(START, -counter.total)
                return counter

            await add(one, 5, "c1")
            await one.transact(Counter, PROJECT, "a", drain, cause("c2"))
            await add(two, 3, "c3")
            drained = await one.transact(Counter, PROJECT, "a", drain, cause("c4"))
            assert (drained.changed, drained.aggregate.total) == (True, 0)

    run(scenario())


def test_a_refused_or_failed_decision_leaves_no_trace_in_memory(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 5, "c1", note="kept")

            def halfway(counter):
                counter.add(START, 100, "gone")
                counter.notes.append("gone")
                raise Refused("counter.no", "on second thoughts")

            with pytest.raises(Refused, match="second thoughts"):
                await store.transact(Counter, PROJECT, "a", halfway, cause("c2"))
            aggregate = (await store.load(Counter, PROJECT, "a")).aggregate
            assert (aggregate.total, aggregate.notes, aggregate.version) == (5, ["kept"], 2)

    run(scenario())


def test_concurrent_commands_on_one_aggregate_from_several_processes_all_count(server):
    async def scenario() -> None:
        async with stores(server, 3) as made:
            jobs = [add(store, 1, f"c{i}-{j}") for i, store in enumerate(made) for j in range(20)]
            committed = await asyncio.gather(*jobs)
            assert len({c.seq for c in committed}) == 60
            assert {(await store.load(Counter, PROJECT, "a")).aggregate.total for store in made} <= set(range(1, 61))
            assert (await add(made[0], 0, "look")).aggregate.total == 60
            assert [len(store._locks) for store in made] == [0, 0, 0]

    run(scenario())


def test_in_one_process_no_decision_has_to_be_made_twice(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            made = []

            def decide(counter):
                made.append(counter)
                return adding(1, "a")(counter)

            await asyncio.gather(*[store.transact(Counter, PROJECT, "a", decide, cause(f"c{i}")) for i in range(30)])
            assert len(made) == 30

    run(scenario())


def test_a_replica_that_is_behind_is_asked_again(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            for i in range(5):
                await add(one, 1, f"c{i}")
            page, asked = two._reader.page, []

            async def behind_at_first(subject, seq, limit=1000):
                found = await page(subject, seq, limit)
                asked.append(seq)
                return found._replace(messages=found.messages[:-1]) if len(asked) < 3 else found

            two._reader.page = behind_at_first
            assert (await two.load(Counter, PROJECT, "a")).aggregate.total == 5
            assert len(asked) == 3

    run(scenario())


@pytest.mark.parametrize("fault", ["lose", "drop-ack", "twice", "late"])
def test_a_commit_is_stored_once_whatever_becomes_of_its_message(server, fault):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 1, "c0")
            store.publisher.faults.extend([fault, fault])
            committed = await add(store, 5, "c1")
            assert (committed.changed, committed.aggregate.total) == (True, 6)
            assert [commit.command for commit in await store.read(PROJECT, "counter", "a")] == ["c0", "c1"]
            await add(store, 1, "c2")
            assert store.publisher.seen[1:2] == [fault]

    run(scenario())


def test_a_commit_whose_acknowledgement_was_lost_and_that_was_built_upon_is_still_ours(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            await add(one, 1, "c0")
            stored = asyncio.Event()
            publish = one.publisher._inner.publish

            async def and_then_somebody_else(*message):
                ack = await publish(*message)
                if not stored.is_set():
                    stored.set()
                    await add(two, 10, "other")
                return ack

            one.publisher._inner.publish = and_then_somebody_else
            one.publisher.faults.append("drop-ack")
            committed = await add(one, 5, "c1")
            assert (committed.seq, committed.changed, committed.reply, committed.aggregate.total) == (2, True, {"total": 6}, 16)

    run(scenario())


def test_a_cancelled_command_is_either_stored_or_not_and_memory_agrees(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 1, "c0")
            for i in range(20):
                command = asyncio.create_task(add(store, 1, f"cut{i}"))
                for _ in range(i % 7):
                    await asyncio.sleep(0)
                command.cancel()
                await asyncio.wait([command])
            await add(store, 1, "last")
            commits = await store.read(PROJECT, "counter", "a")
            assert (await store.load(Counter, PROJECT, "a")).aggregate.total == len(commits)
            assert len(store._locks) == 0

    run(scenario())


def test_a_bus_that_is_away_is_refused_as_unavailable_and_the_command_can_be_repeated(server):
    async def scenario() -> None:
        async with stores(server, patience_s=0.5) as (store,):
            await add(store, 1, "c0")
            server.kill()
            with pytest.raises(Refused) as refused:
                await add(store, 5, "c1")
            assert (refused.value.code, refused.value.retryable) == ("bus.unavailable", True)
            server.start()
            await eventually(lambda: store.nc.is_connected and store.nc.stats["reconnects"])
            assert (await add(store, 5, "c1")).aggregate.total == 6

    run(scenario())


def test_a_commit_too_large_for_the_bus_is_refused_and_leaves_the_aggregate_usable(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 1, "c0")
            with pytest.raises(Refused) as refused:
                await add(store, 1, "c1", note="x" * (9 << 20))
            assert refused.value.code == "command.too-large"
            assert (await add(store, 1, "c2")).aggregate.total == 2

    run(scenario())


def test_a_decision_that_answers_for_another_aggregate_is_a_bug(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            with pytest.raises(ValueError, match="does not continue"):
                await store.transact(Counter, PROJECT, "a", adding(1, "b"), cause("c1"))

    run(scenario())


def test_several_aggregates_change_together_or_not_at_all(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            await add(one, 10, "c0", "a", limit=10)

            def move(amount, taker="b"):
                return [
                    Part(Counter, PROJECT, "a", adding(-amount, "a"), lambda c: {"left": c.total}),
                    Part(Counter, PROJECT, taker, adding(amount, taker, limit=8)),
                ]

            moved = await one.transact_many(move(4), cause("c1"))
            assert [(c.aggregate.total, c.changed) for c in moved] == [(6, True), (4, True)]
            assert moved[0].reply == {"left": 6}
            with pytest.raises(Refused, match="over 8"):
                await one.transact_many(move(5), cause("c2"))
            again = await two.transact_many(move(4), cause("c1"))
            assert [(c.seq, c.replayed, c.changed) for c in again] == [(c.seq, True, False) for c in moved]
            assert again[0].reply == {"left": 6}
            assert await one.position() == 3

    run(scenario())


@pytest.mark.parametrize("fault", ["lose", "drop-ack", "twice", "late"])
def test_a_batch_is_stored_once_whatever_becomes_of_its_messages(server, fault):
    async def scenario() -> None:
        async with stores(server) as (store,):
            store.publisher.faults.extend([fault, fault])
            parts = [Part(Counter, PROJECT, name, adding(1, name)) for name in "abc"]
            committed = await store.transact_many(parts, cause("c1"))
            assert [(c.seq, c.changed) for c in committed] == [(1, True), (2, True), (3, True)]
            assert await store.position() == 3

    run(scenario())


def test_batches_over_the_same_aggregates_in_any_order_do_not_wait_for_each_other_for_ever(server):
    async def scenario() -> None:
        async with stores(server, 2) as made:

            async def both(store, i, names):
                await store.transact_many([Part(Counter, PROJECT, name, adding(1, name)) for name in names], cause(f"c{i}"))

            await asyncio.wait_for(asyncio.gather(*[both(made[i % 2], i, "ab" if i % 3 else "ba") for i in range(30)]), 20)
            assert [(await add(made[0], 0, "look", name)).aggregate.total for name in "ab"] == [30, 30]

    run(scenario())


def test_an_aggregate_of_another_project_is_another_aggregate_and_its_commits_say_so(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            await add(store, 1, "c1")
            await store.transact(Counter, "system", "a", adding(2, "a"), cause("c1"))
            assert (await store.load(Counter, "system", "a")).aggregate.total == 2
            (commit,) = await store.read("system", "counter", "a")
            assert commit.project == "system"

    run(scenario())


def test_the_log_is_read_in_order_by_filters_and_pages(server):
    async def scenario() -> None:
        async with stores(server) as (store,):
            for i in range(12):
                await add(store, 1, f"c{i}", "abc"[i % 3])
            assert [commit.seq for commit in await store.read_all()] == list(range(1, 13))
            assert [commit.seq for commit in await store.read_all(4, limit=3)] == [5, 6, 7]
            both = await store.read_all(0, ["strand.evt.*.counter.a", "strand.evt.*.counter.b", "strand.evt.default.counter.*"], limit=5)
            assert [commit.seq for commit in both] == [1, 2, 3, 4, 5]
            some = await store.read_all(3, ["strand.evt.*.counter.a", "strand.evt.*.counter.b"], limit=4)
            assert [(commit.seq, commit.id) for commit in some] == [(4, "a"), (5, "b"), (7, "a"), (8, "b")]

    run(scenario())


def test_memory_holds_the_most_recently_used_aggregates(server):
    async def scenario() -> None:
        async with stores(server, cache_size=3) as (store,):
            for name in "abcde":
                await add(store, 1, "c1", name)
            await store.load(Counter, PROJECT, "c")
            await store.load(Counter, PROJECT, "a")
            assert [key.id for key in store._cache._entries] == ["e", "c", "a"]

    run(scenario())


def test_what_another_process_changed_is_read_anew_once_it_was_seen_in_the_log(server):
    async def scenario() -> None:
        async with stores(server, 2) as (one, two):
            await add(one, 1, "c1")
            await add(two, 1, "c2")
            assert (await one.load(Counter, PROJECT, "a")).aggregate.total == 1
            for commit in await two.read_all():
                one.saw(commit)
            assert (await one.load(Counter, PROJECT, "a")).aggregate.total == 2
            assert one._cache.get(Key(PROJECT, "counter", "a")) is not None

    run(scenario())
