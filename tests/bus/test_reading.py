"""Reading stored messages without a consumer."""

from __future__ import annotations

import asyncio

from support.bus import connected
from support.waiting import run

from bus.direct import Reader
from bus.fast import open_publisher


def with_reader(server, body, count=0):
    async def scenario() -> None:
        async with connected(server) as nc:
            publisher = open_publisher(nc)
            await asyncio.gather(*[publisher.publish(f"strand.evt.p.counter.c{i % 10}", b"%d" % i) for i in range(count)])
            reader = Reader(publisher, "EVENTS")
            await body(reader)
            await reader.close()
            await publisher.close()

    run(scenario())


def test_what_is_not_there_is_none_or_empty(server):
    async def body(reader: Reader) -> None:
        assert await reader.last("strand.evt.p.counter.a") is None
        assert await reader.leader_last("strand.evt.p.counter.a") is None
        assert await reader.leader_at(7) is None
        assert await reader.position() == 0
        assert await reader.page("strand.evt.>", 1) == ([], 0)

    with_reader(server, body)


def test_pages_follow_each_other_without_gap_or_overlap(server):
    async def body(reader: Reader) -> None:
        seen, seq = [], 1
        while seq:
            page = await reader.page("strand.evt.p.counter.c3", seq, limit=30)
            assert len(page.messages) <= 30
            seen += [message.seq for message in page.messages]
            seq = page.next_seq
        assert len(seen) == 100
        assert seen == sorted(set(seen))
        assert [message.seq async for message in reader.all("strand.evt.p.counter.c3")] == seen

    with_reader(server, body, count=1000)


def test_the_last_message_is_the_same_from_a_replica_and_from_the_leader(server):
    async def body(reader: Reader) -> None:
        last = await reader.last("strand.evt.p.counter.c3")
        assert last is not None
        assert last == await reader.leader_last("strand.evt.p.counter.c3") == await reader.leader_at(last.seq)
        assert await reader.position() == 20

    with_reader(server, body, count=20)


def test_many_pages_may_be_asked_for_at_once(server):
    async def body(reader: Reader) -> None:
        pages = await asyncio.gather(*[reader.page(f"strand.evt.p.counter.c{i}", 1) for i in range(10)])
        assert [{message.subject for message in page.messages} for page in pages] == [{f"strand.evt.p.counter.c{i}"} for i in range(10)]

    with_reader(server, body, count=200)
