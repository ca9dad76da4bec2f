"""Both publishers keep the same promises; the fast one is the same by other means."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest
from support.bus import connected
from support.waiting import eventually, run

from bus.direct import Reader
from bus.fast import ApiError, FastPublisher, Message, Publisher, open_publisher, publish_all
from bus.replies import Replies, UnansweredError

EXPECT = "Nats-Expected-Last-Subject-Sequence"


@pytest.fixture(params=[True, False], ids=["fast", "public"])
def fast(request) -> bool:
    return request.param


def scenario_of(server, fast, body):
    async def scenario() -> None:
        async with connected(server) as nc:
            if not fast:
                nc.replies = None
            publisher = open_publisher(nc)
            assert isinstance(publisher, FastPublisher) is fast
            await body(nc, publisher)
            await publisher.close()

    run(scenario())


def test_many_messages_under_way_at_once_each_get_their_own_acknowledgement(server, fast):
    async def body(nc, publisher: Publisher) -> None:
        acks = await asyncio.gather(*[publisher.publish(f"strand.evt.p.counter.c{i}", b"%d" % i, {EXPECT: "0"}) for i in range(500)])
        assert sorted(ack.seq for ack in acks) == list(range(1, 501))
        for i in (0, 17, 499):
            assert (await nc.jetstream().get_msg("EVENTS", acks[i].seq)).data == b"%d" % i

    scenario_of(server, fast, body)


def test_a_stale_expectation_is_rejected_with_the_servers_code(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        await publisher.publish("strand.evt.p.counter.a", b"1", {EXPECT: "0"})
        with pytest.raises(ApiError) as rejected:
            await publisher.publish("strand.evt.p.counter.a", b"2", {EXPECT: "0"})
        assert (rejected.value.err_code, rejected.value.passing) == (10071, False)

    scenario_of(server, fast, body)


def test_a_repeated_message_is_acknowledged_as_a_duplicate(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        one = await publisher.publish("strand.evt.p.counter.a", b"1", {"Nats-Msg-Id": "m"})
        two = await publisher.publish("strand.evt.p.counter.a", b"1", {"Nats-Msg-Id": "m"})
        assert (one.duplicate, two.duplicate, two.seq) == (False, True, one.seq)

    scenario_of(server, fast, body)


def test_a_batch_is_stored_whole_or_not_at_all(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        messages = [Message(f"strand.evt.p.counter.{name}", name.encode(), {EXPECT: "0"}) for name in "abc"]
        ack = await publisher.publish_batch(messages)
        assert (ack.seq, ack.messages) == (3, 3)
        with pytest.raises(ApiError):
            await publisher.publish_batch([Message("strand.evt.p.counter.d", b"d", {EXPECT: "0"}), messages[0]])
        assert await Reader(publisher, "EVENTS").position() == 3

    scenario_of(server, fast, body)


def test_a_batch_leaves_in_one_write(server):
    async def body(nc, publisher: Publisher) -> None:
        written = []
        nc._transport.writelines = lambda lines, write=nc._transport.writelines: [written.append(len(lines)), write(lines)]
        await publisher.publish_batch([Message(f"strand.evt.p.counter.{name}", b"1", {EXPECT: "0"}) for name in "abc"])
        assert written == [3]

    scenario_of(server, True, body)


def test_several_messages_are_published_in_their_order(server, fast):
    async def body(nc, _publisher: Publisher) -> None:
        heard = await nc.subscribe("heard.>")
        await publish_all(nc, [(f"heard.{i}", b"%d" % i) for i in range(5)])
        assert [(await heard.next_msg(5)).data for _ in range(5)] == [b"%d" % i for i in range(5)]

    scenario_of(server, fast, body)


def test_a_subject_that_nobody_stores_is_unanswered_at_once(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        with pytest.raises(UnansweredError, match=r"(?i)no ?responders"):
            await publisher.publish("nobody.listens", b"")

    scenario_of(server, fast, body)


def test_a_body_over_the_servers_limit_never_leaves(server, fast):
    async def body(nc, publisher: Publisher) -> None:
        with pytest.raises(nats.errors.MaxPayloadError):
            await publisher.publish("strand.evt.p.counter.a", bytes(nc.max_payload + 1))
        await publisher.publish("strand.evt.p.counter.a", b"fits")

    scenario_of(server, fast, body)


def test_large_bodies_wait_for_the_socket_and_all_arrive(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        acks = await asyncio.gather(*[publisher.publish(f"strand.evt.p.counter.c{i}", bytes(300_000), timeout=20) for i in range(40)])
        assert len({ack.seq for ack in acks}) == 40

    scenario_of(server, fast, body)


def test_a_lost_connection_leaves_publishes_unanswered_and_later_ones_work(server, fast):
    async def body(nc, publisher: Publisher) -> None:
        server.kill()
        with pytest.raises(UnansweredError):
            await publisher.publish("strand.evt.p.counter.a", b"1", timeout=0.5)
        server.start()
        await eventually(lambda: nc.stats["reconnects"] == 1 and nc.is_connected)
        assert (await publisher.publish("strand.evt.p.counter.a", b"2")).seq >= 1

    scenario_of(server, fast, body)


def test_a_cancelled_publish_leaves_nothing_behind(server):
    async def body(nc, publisher: FastPublisher) -> None:
        publishing = asyncio.create_task(publisher.publish("strand.evt.p.counter.a", b"1"))
        await asyncio.sleep(0)
        assert nc.replies.waiting == 1
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert nc.replies.waiting == 0

    scenario_of(server, fast=True, body=body)


def test_a_header_or_subject_cannot_break_out_of_its_line(server):
    async def body(_nc, publisher: FastPublisher) -> None:
        with pytest.raises(ValueError, match="line break"):
            await publisher.publish("strand.evt.p.counter.a", b"", {"A": "b\r\nC: d"})
        with pytest.raises(nats.errors.BadSubjectError):
            await publisher.publish("strand.evt.p.counter.a 0\r\n", b"")

    scenario_of(server, fast=True, body=body)


def test_the_public_api_takes_over_when_the_internals_are_not_as_known(server, monkeypatch):
    async def scenario() -> None:
        monkeypatch.setattr(Replies, "_receive", lambda self, *message: None)
        monkeypatch.setattr("bus.replies.PROOF_S", 0.05)
        async with connected(server) as nc:
            publisher = open_publisher(nc)
            assert type(publisher) is Publisher
            assert (await publisher.publish("strand.evt.p.counter.a", b"1")).seq == 1

    run(scenario())


def test_a_cancellation_that_comes_together_with_the_answer_is_heeded(server, fast):
    async def body(nc, publisher: Publisher) -> None:
        async def ask() -> None:
            await publisher.ask("echo", b"")
            await nc.flush()

        async def answer(message) -> None:
            await message.respond(b"here")
            asking.cancel()  # the answer is on its way

        await nc.subscribe("echo", cb=answer)
        asking = asyncio.create_task(ask())
        with pytest.raises(asyncio.CancelledError):
            await asking

    scenario_of(server, fast, body)


def test_requests_are_answered_while_a_cancelled_task_cleans_up(server, fast):
    async def body(_nc, publisher: Publisher) -> None:
        async def work() -> int:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return (await publisher.publish("strand.evt.p.counter.a", b"last words")).seq
            return 0

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        assert await working == 1

    scenario_of(server, fast, body)
