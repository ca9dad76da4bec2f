"""Lanes spread over several streams: one number, stored with the streams, that everybody goes by."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from support.bus import connected
from support.node import ScriptedNode
from support.places import placed
from support.waiting import eventually

from bus import accounts
from bus.accounts import Authority
from bus.connection import connect
from bus.lanes import LaneKeeper, LaneReader, send
from bus.server import Server
from bus.streams import Settings, StreamMismatchError, ensure_streams, lane_shard, lane_shards
from domain.nodes.orders import Order, Verb

pytestmark = pytest.mark.quick

FOUR = Settings(shards=4)
NODES = ("node-1", "node-3", "node-6", "node-9", "node-11")


def test_orders_reach_nodes_in_every_shard_of_a_control_plane_that_was_told_nothing(server, run) -> None:
    async def main() -> None:
        assert {lane_shard(node, 4) for node in NODES} == {0, 1, 2, 3}
        async with connected(server, settings=FOUR), placed(server) as place:
            nodes = [ScriptedNode(place.nc, name) for name in NODES[1:]]
            for node in nodes:
                await place.do("node.enroll", {"node_id": node.node_id})
                await node.__aenter__()
            await eventually(lambda: len(place.plane.control.fleet.healthy_nodes()) == len(NODES))
            template = await place.template()
            assert all(node.did(Verb.REPLICA_PREPARE) for node in (place.node, *nodes))
            await asyncio.gather(*(place.sandbox(template, node=name) for name in NODES))
            await place.do("node.evict", {"node_id": NODES[-1]})
            await eventually(lambda: lane_is_gone(place.nc, NODES[-1]))
            for node in nodes:
                await node.__aexit__()

    async def lane_is_gone(nc, node: str) -> bool:
        names = [c.name for c in await nc.jetstream().consumers_info(f"LANES-{lane_shard(node, 4)}")]
        return node not in names

    run(main())


def test_the_number_of_shards_is_chosen_once(server, run) -> None:
    async def main() -> None:
        async with connected(server, settings=FOUR) as nc:
            await ensure_streams(nc)
            await ensure_streams(nc, settings=FOUR)
            assert await lane_shards(nc) == 4
            for other in (1, 8):
                with pytest.raises(StreamMismatchError, match="4 streams"):
                    await ensure_streams(nc, settings=Settings(shards=other))

    run(main())


def test_an_installation_from_before_there_was_a_choice_has_one_shard(server, run) -> None:
    async def main() -> None:
        async with connected(server) as nc:
            await ensure_streams(nc, settings=Settings(shards=1))
            assert await lane_shards(nc) == 1
            with pytest.raises(StreamMismatchError, match="1 streams"):
                await ensure_streams(nc, settings=FOUR)

    run(main())


def test_a_node_that_sees_nothing_but_its_own_lane_is_told_where_that_is(tmp_path, run) -> None:
    """With an account per node an agent has no right to look for the number itself."""

    async def main() -> None:
        authority, done = Authority.load(tmp_path / "auth"), []
        with Server(tmp_path / "nats", config=authority.server_config(tmp_path / "jwt")) as server:
            control, agent = (tmp_path / name for name in ("control.creds", "agent.creds"))
            accounts.write_secret(control, authority.control_creds("control"))
            async with await connect(server.url, name="control", creds=control, on_closed=lambda: None) as nc:
                await ensure_streams(nc, settings=FOUR)
                accounts.write_secret(control, authority.system_creds())
                member = authority.node("node-1", shards=await lane_shards(nc))
                async with await connect(server.url, name="system", creds=control, on_closed=lambda: None) as system:
                    await accounts.push(system, member)
                accounts.write_secret(agent, member.creds)

                async def carry_out(order, _ack) -> None:
                    done.append(order.id)

                async with (
                    await connect(server.url, name="agent", creds=agent, on_closed=lambda: None) as node,
                    LaneKeeper(nc, shards=4),
                    LaneReader(node, "node-1", carry_out),
                ):
                    await send(nc, "node-1", an_order(), shards=4)
                    await eventually(lambda: done == ["o"])

    run(main())


def an_order() -> Order:
    return Order(id="o", verb=Verb.SANDBOX_STOP, project="p", key="k", process="sandbox", process_id="k", at=datetime.now(UTC), body={})
