"""What is kept of aggregates in memory."""

from __future__ import annotations

import asyncio
import copy

import pytest
from support.things import START, Counter
from support.waiting import run

from bus.cache import Cache, Key, Loaded, Locks, clone

pytestmark = pytest.mark.quick

A, B, C = (Key("p", "counter", name) for name in "abc")


def counter(total: int = 0) -> Counter:
    made = Counter.open(START, "a")
    made.add(START, total, "note")
    made.collect_events()
    return made


def test_an_older_state_never_replaces_a_newer_one():
    cache = Cache(3)
    newer, older = Loaded(counter(2), seq=2), Loaded(counter(1), seq=1)
    cache.put(A, newer)
    cache.put(A, older)
    assert cache.get(A) is newer


def test_only_what_ends_before_a_position_is_dropped_for_it():
    cache = Cache(3)
    cache.put(A, Loaded(counter(), seq=5))
    cache.drop(A, older_than=5)
    assert cache.get(A) is not None
    cache.drop(A, older_than=6)
    assert cache.get(A) is None


def test_a_clone_is_equal_and_shares_nothing_that_can_change():
    original = counter(5)
    original.nested = {"a": [1, {2}], "b": {"c": ("d", START)}}
    twin = clone(original)
    assert twin == original == copy.deepcopy(original)
    twin.add(START, 1, "more")
    twin.nested["a"][1].add(3)
    twin.nested["b"]["c"] = ()
    assert (original.total, original.notes, original.version, original.pending_events) == (5, ["note"], 2, [])
    assert original.nested == {"a": [1, {2}], "b": {"c": ("d", START)}}


def test_nobody_holds_what_another_one_holds_and_no_lock_is_kept():
    async def scenario() -> None:
        locks, held = Locks(), set()

        async def use(keys) -> None:
            async with locks.hold(keys):
                assert held.isdisjoint(keys)
                held.update(keys)
                await asyncio.sleep(0)
                held.difference_update(keys)

        await asyncio.wait_for(asyncio.gather(*[use(keys) for keys in ([A, B], [B, A], [B, C], [C], [C, A])] * 3), 5)
        assert len(locks) == 0

    run(scenario())


def test_a_cancelled_wait_for_a_lock_leaves_the_others_undisturbed():
    async def scenario() -> None:
        locks = Locks()

        async def hold(keys) -> None:
            async with locks.hold(keys):
                await asyncio.sleep(0)

        async with locks.hold([B]):
            waiting = asyncio.create_task(hold([A, B, C]))
            await asyncio.sleep(0)
            assert len(locks) == 2
            waiting.cancel()
            await asyncio.wait([waiting])
            assert len(locks) == 1
        await asyncio.wait_for(hold([A, B, C]), 1)
        assert len(locks) == 0

    run(scenario())
