"""The same services on three replicated servers, which answer differently and lose their leaders."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.bus import connected

from bus import heartbeat, lanes, objects
from bus.lanes import LaneReader
from bus.leases import LeaseLostError, Leases
from bus.reader import Work
from bus.receipts import Receipt, Receipts
from bus.requests import call
from bus.timers import Due, DueReader, set_timer
from domain.nodes.orders import Order, Verb

pytestmark = pytest.mark.slow

QUICK = Work(tries=3, pauses=(0.01,), grace=0.2)


def order(name: str) -> Order:
    return Order(id=name, verb=Verb.SANDBOX_STOP, project="p", key="k", process="sandbox", process_id="x", at=datetime.now(UTC), body={})


def test_orders_survive_the_loss_of_their_streams_leader(cluster, run, eventually) -> None:
    async def main() -> None:
        done: list[str] = []

        async def handle(order: Order, ack: lanes.Ack) -> None:
            done.append(order.id)

        async with connected(cluster) as nc, LaneReader(nc, "n1", handle, work=QUICK):
            await lanes.send(nc, "n1", order("o0"))
            await eventually(lambda: done == ["o0"], within=30)
            leader = await asyncio.to_thread(cluster.leader_of, "LANES-0")
            cluster.kill(leader)
            for number in range(1, 20):
                await lanes.send(nc, "n1", order(f"o{number}"), within=60)
            await eventually(lambda: len(done) >= 20, within=60)
            assert done == [f"o{number}" for number in range(20)]
            await asyncio.to_thread(cluster.restart, leader)

            async def empty() -> bool:
                return (await call(nc, "STREAM.INFO.LANES-0"))["state"]["messages"] == 0

            await eventually(empty, within=30)

    run(main())


def test_one_of_many_gets_a_lease_and_receipts_timers_objects_and_beats_work(cluster, run, eventually, tmp_path) -> None:
    async def main() -> None:
        come: list[int] = []

        async def handle(due: Due) -> None:
            come.append(due.generation)

        async def seen(node: str, at: datetime) -> None:
            come.append(0)

        async with connected(cluster) as nc, DueReader(nc, handle, work=QUICK), heartbeat.watch(nc, seen, seen):
            leases = Leases(nc)
            got = [lease for lease in await asyncio.gather(*(leases.acquire("k", f"h{n}", 30) for n in range(30))) if lease]
            assert len(got) == 1
            await leases.release(await leases.renew(got[0]))
            with pytest.raises(LeaseLostError):
                await leases.renew(got[0])
            claims = await asyncio.gather(*(Receipts(nc).claim("p", "c-1", f"d{n}") for n in range(30)))
            assert len({claim.digest for claim in claims}) == 1
            answers = await asyncio.gather(*(Receipts(nc).settle("p", "c-1", replace(claims[0], reply={"a": n})) for n in range(30)))
            assert all(answer == answers[0] for answer in answers)
            assert await Receipts(nc).get("p", "c-1") == Receipt(claims[0].digest, answers[0])
            await set_timer(nc, "p", "sandbox", "sb", "ttl", datetime.now(UTC) + timedelta(seconds=0.3), 7)
            await heartbeat.beat(nc, "n1")
            await eventually(lambda: set(come) == {0, 7})
            (tmp_path / "in").write_bytes(b"x" * 5_000_000)
            put = await objects.put_file(nc, "artifacts", "rfs-1", tmp_path / "in")
            assert await objects.get_file(nc, "artifacts", "rfs-1", tmp_path / "out", sha256=put.sha256) == 5_000_000

    run(main())
