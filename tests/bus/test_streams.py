"""Streams are made once, mended where possible, and never silently different."""

from __future__ import annotations

import asyncio

import pytest
from nats.js.errors import APIError
from support.bus import connected
from support.waiting import run

from bus.streams import Settings, StreamMismatchError, all_streams, ensure_streams, lane_entry, lane_shard, lane_stream

pytestmark = pytest.mark.quick


async def stored(nc) -> dict[str, object]:
    return {info.config.name: info.config for info in await nc.jetstream().streams_info()}


def test_two_processes_may_prepare_the_bus_at_once(server):
    async def scenario() -> None:
        async with connected(server, streams=False) as one, connected(server, streams=False) as two:
            await asyncio.gather(ensure_streams(one), ensure_streams(two), ensure_streams(one))
            assert set(await stored(one)) == {config["name"] for config in all_streams(Settings())}

    run(scenario())


def test_a_setting_that_differs_is_mended_and_what_we_do_not_set_is_left_alone(server):
    async def scenario() -> None:
        async with connected(server) as nc:
            js = nc.jetstream()
            logs = (await js.stream_info("LOGS")).config
            logs.max_age, logs.description = 600.0, "the operator's words"
            await js.update_stream(logs)
            await ensure_streams(nc)
            mended = (await stored(nc))["LOGS"]
            assert (mended.max_age, mended.description) == (3 * 86_400, "the operator's words")

    run(scenario())


def test_a_difference_that_cannot_be_mended_is_refused_by_name(server):
    async def scenario() -> None:
        async with connected(server) as nc:
            with pytest.raises(StreamMismatchError, match="EVENTS: storage is 'file' and cannot become 'memory'"):
                await ensure_streams(nc, storage="memory")

    run(scenario())


def test_a_stream_of_somebody_else_on_our_subjects_is_refused(server):
    async def scenario() -> None:
        async with connected(server, streams=False) as nc:
            await nc.jetstream().add_stream(name="THEIRS", subjects=["strand.evt.mine.>"])
            with pytest.raises(StreamMismatchError, match="EVENTS: subjects overlap"):
                await ensure_streams(nc)

    run(scenario())


def test_nothing_can_be_taken_out_of_the_log(server):
    async def scenario() -> None:
        async with connected(server) as nc:
            js = nc.jetstream()
            await js.publish("strand.evt.p.counter.a", b"x")
            with pytest.raises(APIError, match="not permitted"):
                await js.purge_stream("EVENTS")
            with pytest.raises(APIError, match="not permitted"):
                await js.delete_msg("EVENTS", 1)

    run(scenario())


def test_a_lane_is_stored_under_its_public_subject_whatever_the_number_of_shards(server):
    async def scenario() -> None:
        async with connected(server, settings=Settings(shards=4)) as nc:
            js = nc.jetstream()
            for node in ("n1", "n2", "n3", "n4", "n5"):
                ack = await js.publish(lane_entry(node, "sandbox-stop", 4), b"x")
                assert ack.stream == lane_stream(node, 4)
                assert (await js.get_msg(ack.stream, ack.seq)).subject == f"strand.lane.{node}.sandbox-stop"

    run(scenario())


def test_shards_are_stable_and_all_in_use():
    assert [lane_shard(f"node-{i}", 16) for i in range(4)] == [10, 10, 6, 12]
    assert {lane_shard(f"node-{i}", 16) for i in range(200)} == set(range(16))
    assert lane_entry("n1", "sandbox-stop") == "strand.lane.n1.sandbox-stop"


def test_keys_expire_in_both_buckets(server):
    async def scenario() -> None:
        async with connected(server) as nc:
            for bucket in ("NODES", "LEASES"):
                ack = await nc.jetstream().publish(f"$KV.{bucket}.a", b"x", headers={"Nats-TTL": "3600"})
                assert ack.seq == 1

    run(scenario())
