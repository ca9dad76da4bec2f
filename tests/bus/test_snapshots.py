"""Snapshots make loading cheaper and can never make it wrong."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from support.bus import connected
from support.things import PROJECT, Counter, adding, cause
from support.waiting import run

from bus import snapshots, subjects
from bus.cache import Key
from bus.store import Store

SUBJECT = subjects.snapshot(PROJECT, "counter", "a")


def with_history(server, body, count=25, every=10):
    """A counter with ``count`` commits behind it, whose snapshots are written."""

    async def scenario() -> None:
        async with connected(server) as nc:
            store = await Store.open(nc, snapshot_every=every)
            for i in range(count):
                await store.transact(Counter, PROJECT, "a", adding(1, "a", note=f"n{i}"), cause(f"c{i}", tick=i))
            await store.close()
            await body(nc)

    run(scenario())


async def loaded_by_another(nc, every=10):
    """What another process loads, and how many commits it had to read for it."""
    store = await Store.open(nc, snapshot_every=every)
    read = []
    commits = store._loader.commits

    async def counted(subject, seq=1):
        found = await commits(subject, seq)
        read.append(len(found))
        return found

    store._loader.commits = counted
    loaded = await store.load(Counter, PROJECT, "a")
    await store.close()
    return loaded, sum(read)


async def last_snapshot(nc) -> dict:
    return orjson.loads((await nc.jetstream().get_last_msg("SNAPS", SUBJECT)).data)


def same_as_replayed(loaded, replayed) -> bool:
    return loaded == replayed and loaded.aggregate.modified_on == replayed.aggregate.modified_on


def test_a_load_from_a_snapshot_equals_a_replay_and_reads_only_what_follows(server):
    async def body(nc) -> None:
        loaded, read = await loaded_by_another(nc)
        replayed, read_all = await loaded_by_another(nc, every=0)
        assert (read, read_all, loaded.version) == (25 - 19, 25, 26)
        assert same_as_replayed(loaded, replayed)
        assert loaded.commands == {f"c{i}": i + 1 for i in range(25)}

    with_history(server, body)


def test_there_is_one_snapshot_per_aggregate_and_none_below_the_threshold(server):
    async def body(nc) -> None:
        state = (await nc.jetstream().stream_info("SNAPS")).state
        assert (state.messages, (await last_snapshot(nc))["version"]) == (1, 20)

    with_history(server, body)


def test_snapshots_may_be_deleted_at_any_time(server):
    async def body(nc) -> None:
        await nc.jetstream().purge_stream("SNAPS")
        loaded, read = await loaded_by_another(nc)
        assert (loaded.aggregate.total, read) == (25, 25)

    with_history(server, body)


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": "of another version"},
        {"head": "f" * 64},
        {"seq": 7},
        {"seq": 1_000_000},
        {"version": 19},
        {"state": {"total": "not a number"}},
        {"state": {}},
        {"commands": None},
    ],
    ids=str,
)
def test_a_snapshot_that_does_not_fit_class_or_log_is_ignored(server, damage):
    async def body(nc) -> None:
        said = await last_snapshot(nc)
        state = said["state"] | damage["state"] if damage.get("state") else damage.get("state", said["state"])
        await nc.jetstream().publish(SUBJECT, orjson.dumps(said | damage | {"state": state}))
        loaded, read = await loaded_by_another(nc)
        assert (loaded.aggregate.total, read) == (25, 25)

    with_history(server, body)


def test_garbage_instead_of_a_snapshot_is_ignored(server):
    async def body(nc) -> None:
        await nc.jetstream().publish(SUBJECT, b"\xff not json")
        loaded, _ = await loaded_by_another(nc)
        assert loaded.aggregate.total == 25

    with_history(server, body)


def test_a_class_whose_code_changed_has_another_shape(monkeypatch):
    before = snapshots.shape(Counter)
    snapshots.shape.cache_clear()
    monkeypatch.setattr(snapshots, "_source", lambda module: f"{module} as it will be")
    assert snapshots.shape(Counter) != before
    snapshots.shape.cache_clear()


def test_what_follows_a_snapshot_can_be_decided_upon(server):
    async def body(nc) -> None:
        stores = [await Store.open(nc, snapshot_every=10) for _ in range(2)]
        for i, store in enumerate(stores):
            await store.transact(Counter, PROJECT, "a", adding(10, "a"), cause(f"later{i}"))
            again = await store.transact(Counter, PROJECT, "a", adding(1, "a"), cause("c3"))
            assert (again.replayed, again.seq) == (True, 4)
        assert (await stores[1].load(Counter, PROJECT, "a")).aggregate.total == 45
        await asyncio.gather(*[store.close() for store in stores])

    with_history(server, body)


def test_a_snapshot_that_cannot_be_written_is_left_out(server):
    async def scenario() -> None:
        async with connected(server) as nc:
            store = await Store.open(nc, snapshot_every=1)
            await nc.jetstream().delete_stream("SNAPS")
            committed = await store.transact(Counter, PROJECT, "a", adding(1, "a"), cause("c0"))
            await store._snapshots.flush()
            assert committed.changed
            store._cache.drop(Key(PROJECT, "counter", "a"))
            assert (await store.load(Counter, PROJECT, "a")).aggregate.total == 1
            await store.close()

    run(scenario())
