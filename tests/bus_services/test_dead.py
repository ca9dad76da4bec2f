"""Dead letters: listed with their reason, put back, forgotten."""

from __future__ import annotations

from types import SimpleNamespace

import orjson
import pytest

from bus import dead
from bus.dead import DeadLetters
from bus.durable import DurableReader
from bus.lanes import LaneReader, send
from bus.reader import Work
from bus.requests import call, store
from bus.streams import Settings, ensure_streams
from domain.nodes.orders import Order, Verb


async def consumer(nc, **more) -> None:
    config = {"durable_name": "n1", "filter_subject": "strand.lane.n1.*", "ack_policy": "explicit", **more}
    await call(nc, "CONSUMER.CREATE.LANES-0.n1.strand.lane.n1.*", {"stream_name": "LANES-0", "config": config})


async def taken(nc):
    pull = await nc.jetstream().pull_subscribe_bind("n1", stream="LANES-0")
    return (await pull.fetch(1, timeout=5))[0]


def test_a_message_that_ran_out_of_deliveries_is_listed_with_its_body_and_can_be_put_back(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await consumer(nc, max_deliver=1, ack_wait=50_000_000)
            await store(nc, "strand.lane.n1.stop", b"poison", msg_id="a", headers={"X-Mine": "1"})
            await taken(nc)
            letters = DeadLetters(nc)

            async def expired() -> bool:
                # the advisory comes with the next attempt to deliver
                await nc.publish("$JS.API.CONSUMER.MSG.NEXT.LANES-0.n1", b'{"batch":1,"no_wait":true}', reply=nc.new_inbox())
                return len(await letters.list()) == 1

            await eventually(expired)
            (letter,) = await letters.list()
            assert (letter.kind, letter.stream, letter.consumer, letter.deliveries) == ("undeliverable", "LANES-0", "n1", 1)
            assert (letter.subject, letter.body, letter.headers["X-Mine"]) == ("strand.lane.n1.stop", b"poison", "1")
            await letters.put_back(letter)
            assert await letters.list() == []
            again = await taken(nc)
            assert (again.data, again.headers["X-Mine"]) == (b"poison", "1")
            await again.ack_sync()
            assert (await call(nc, "STREAM.INFO.LANES-0"))["state"]["messages"] == 0

    run(main())


def test_a_message_that_others_terminated_is_listed_with_its_reason_and_cannot_be_put_back(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await consumer(nc)
            await store(nc, "strand.lane.n1.stop", b"bad")
            message = await taken(nc)
            await nc.publish(message.reply, b"+TERM no such sandbox")
            letters = DeadLetters(nc)

            async def listed() -> bool:
                return len(await letters.list(stream="LANES-0")) == 1

            await eventually(listed)
            (letter,) = await letters.list()
            assert (letter.kind, letter.reason, letter.body) == ("terminated", "no such sandbox", None)
            assert await letters.list(stream="REPORTS") == []
            assert await letters.list(after=letter.seq) == []
            with pytest.raises(LookupError):
                await letters.put_back(letter)
            await letters.forget(letter)
            await letters.forget(letter)
            assert await letters.list() == []

    run(main())


def test_dead_letters_survive_a_killed_server(connecting, server, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await consumer(nc)
            await store(nc, "strand.lane.n1.stop", b"bad")
            await nc.publish((await taken(nc)).reply, b"+TERM because")
            letters = DeadLetters(nc)

            async def listed() -> bool:
                return [letter.reason for letter in await letters.list()] == ["because"]

            await eventually(listed)
            server.kill()
            server.start()
            await eventually(listed)

    run(main())


def order(name: str) -> Order:
    return Order(
        id=name, verb=Verb.SANDBOX_STOP, project="p", key="k", process="sandbox", process_id="x", at="2026-01-01T00:00:00Z", body={}
    )


@pytest.mark.parametrize("shards", [1, 4])
def test_an_order_that_a_node_gave_up_comes_again_when_it_is_put_back(connecting, run, eventually, shards) -> None:
    async def main() -> None:
        done: list[str] = []
        broken = True

        async def carry_out(order: Order, ack) -> None:
            if broken:
                await ack.term("no such sandbox")
            else:
                done.append(order.id)

        async with connecting() as nc:
            await ensure_streams(nc, settings=Settings(shards=shards))
            await send(nc, "n1", order("a"), shards=shards)
            letters = DeadLetters(nc)
            async with LaneReader(nc, "n1", carry_out, shards=shards, work=Work(grace=0.2)):
                (letter,) = await eventually(letters.list)
                assert (letter.kind, letter.consumer, letter.reason) == ("terminated", "n1", "no such sandbox")
                assert Order.model_validate_json(letter.body) == order("a")
                broken = False
                await letters.put_back(letter)
                await eventually(lambda: done == ["a"])
            assert await letters.list() == []

    run(main())


def test_what_a_node_says_about_another_subject_than_its_lane_is_not_put_back(connecting, run, eventually) -> None:
    """A copy is put back with the control plane's rights."""

    async def main() -> None:
        async with connecting(streams=True) as nc:
            await consumer(nc)
            for number, forged in enumerate(({"subject": "strand.evt.p.sandbox.x", "body": "e30="}, {"subject": 5}, []), 1):
                await store(nc, "strand.lane.n1.stop", b"bad")
                await store(nc, f"strand.dead.n1.LANES-0.{number}", orjson.dumps(forged))
                await nc.publish((await taken(nc)).reply, b"+TERM because")
            letters = DeadLetters(nc)

            async def three() -> list:
                found = await letters.list()
                return found if len(found) == 3 else []

            for letter in await eventually(three):
                assert (letter.body, letter.subject) == (None, None)
                with pytest.raises(LookupError):
                    await letters.put_back(letter)
                await letters.forget(letter)
            assert (await call(nc, "STREAM.INFO.DEAD"))["state"]["messages"] == 0
            assert (await call(nc, "STREAM.INFO.EVENTS"))["state"]["messages"] == 0

    run(main())


def test_a_commit_that_cannot_be_handled_is_listed_with_its_body_and_never_stored_again(connecting, run, eventually) -> None:
    async def main() -> None:
        async def handle(commit) -> None:
            raise AssertionError(commit)

        async with connecting(streams=True) as nc, DurableReader(nc, "d", ["strand.evt.>"], handle, attempts=1):
            await store(nc, "strand.evt.p.sandbox.x", b"no commit")
            letters = DeadLetters(nc)
            (letter,) = await eventually(letters.list)
            assert (letter.stream, letter.subject, letter.body) == ("EVENTS", "strand.evt.p.sandbox.x", b"no commit")
            with pytest.raises(LookupError, match="in the log"):
                await letters.put_back(letter)
            await letters.forget(letter)
            assert (await call(nc, "STREAM.INFO.EVENTS"))["state"]["messages"] == 1
            assert await letters.list() == []

    run(main())


def test_a_large_body_is_not_kept_and_a_bus_that_keeps_nothing_holds_nobody_up(connecting, run, monkeypatch, logs) -> None:
    monkeypatch.setattr(dead, "LARGEST", 10)
    monkeypatch.setattr(dead, "KEEP_S", 0.2)
    message = SimpleNamespace(
        subject="strand.rpt.n1.done", headers=None, data=b"x" * 11, metadata=SimpleNamespace(sequence=SimpleNamespace(stream=7))
    )

    async def main() -> None:
        async with connecting(streams=True) as nc:
            await dead.keep(nc, dead.CONTROL, "REPORTS", message, "because")
            kept = orjson.loads((await nc.jetstream().get_last_msg("DEAD", "strand.dead._control.REPORTS.7")).data)
            assert (kept["body"], kept["size"], kept["reason"]) == (None, 11, "because")
            await nc.jetstream().delete_stream("DEAD")
            await dead.keep(nc, dead.CONTROL, "REPORTS", message, "because")
            assert [entry["event"] for entry in logs] == ["dead.not-kept"]

    run(main())
