"""Time-outs: said once their time has come, replaced, cancelled, and not forgotten by a killed server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from bus.reader import Work
from bus.requests import call
from bus.timers import Due, DueReader, cancel_timer, set_timer

QUICK = Work(tries=3, pauses=(0.01,), grace=0.2)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_a_timer_comes_due_with_everything_it_was_set_with_and_not_before_its_time(connecting, run, eventually) -> None:
    async def main() -> None:
        come: list[tuple[Due, datetime]] = []

        async def handle(due: Due) -> None:
            come.append((due, datetime.now(UTC)))

        async with connecting(streams=True) as nc, DueReader(nc, handle, work=QUICK):
            at = soon(0.5)
            await set_timer(nc, "p", "sandbox", "sb-1", "ttl", at, 3, {"why": "test"})
            await eventually(lambda: come)
            ((due, when),) = come
            assert due == Due("p", "sandbox", "sb-1", "ttl", 3, at, {"why": "test"})
            assert at <= when <= at + timedelta(seconds=3)

    run(main())


def test_a_timer_set_again_comes_due_once_and_a_cancelled_one_never(connecting, run, eventually) -> None:
    async def main() -> None:
        come: list[tuple[str, int]] = []

        async def handle(due: Due) -> None:
            come.append((due.id, due.generation))

        async with connecting(streams=True) as nc, DueReader(nc, handle, work=QUICK):
            await set_timer(nc, "p", "sandbox", "a", "ttl", soon(0.3), 1)
            await set_timer(nc, "p", "sandbox", "a", "ttl", soon(0.4), 2)
            await set_timer(nc, "p", "sandbox", "b", "ttl", soon(0.2), 1)
            await cancel_timer(nc, "p", "sandbox", "b", "ttl")
            await cancel_timer(nc, "p", "sandbox", "never-set", "ttl")
            await set_timer(nc, "p", "sandbox", "z", "ttl", soon(1), 1)
            await eventually(lambda: ("z", 1) in come)
            assert come == [("a", 2), ("z", 1)]

    run(main())


def test_an_instant_in_the_past_is_due_at_once(connecting, run, eventually) -> None:
    async def main() -> None:
        come: list[int] = []

        async def handle(due: Due) -> None:
            come.append(due.generation)

        async with connecting(streams=True) as nc, DueReader(nc, handle, work=QUICK):
            await set_timer(nc, "p", "sandbox", "a", "ttl", PAST, 1)
            await eventually(lambda: come == [1])

    run(main())


def test_timers_come_due_after_the_server_was_killed(connecting, server, run, eventually) -> None:
    async def main() -> None:
        come: list[str] = []

        async def handle(due: Due) -> None:
            come.append(due.id)

        async with connecting(streams=True) as nc:
            await set_timer(nc, "p", "sandbox", "while-away", "ttl", soon(0.1), 1)
            await set_timer(nc, "p", "sandbox", "later", "ttl", soon(1.5), 1)
            server.kill()
            await asyncio.to_thread(server.start)
            async with DueReader(nc, handle, work=QUICK):
                await eventually(lambda: come == ["while-away", "later"])

    run(main())


def test_what_came_due_is_handled_again_when_its_handler_failed_and_forgotten_in_time(connecting, run, eventually) -> None:
    async def main() -> None:
        tries: list[str] = []

        async def handle(due: Due) -> None:
            tries.append(due.name)
            if len(tries) < 3:
                raise RuntimeError("not yet")

        async with connecting(streams=True) as nc, DueReader(nc, handle, work=QUICK):
            await set_timer(nc, "p", "sandbox", "a", "ttl", PAST, 1)
            await eventually(lambda: len(tries) == 3)
            message = await nc.jetstream().get_last_msg("TIMERS", "strand.due.p.sandbox.a.ttl")
            assert message.headers["Nats-TTL"] == "72h"
            assert (await call(nc, "STREAM.INFO.TIMERS"))["state"]["messages"] == 1

    run(main())
