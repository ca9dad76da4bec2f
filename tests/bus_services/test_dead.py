"""Dead letters: listed with their reason, put back, forgotten."""

from __future__ import annotations

import pytest

from bus.dead import DeadLetters
from bus.requests import call, store


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


def test_a_terminated_message_is_listed_with_its_reason_and_cannot_be_put_back(connecting, run, eventually) -> None:
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
