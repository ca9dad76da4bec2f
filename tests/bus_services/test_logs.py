"""Sandbox output: gathered, bounded, in order, readable from any moment, and followed through a killed server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from bus import logs
from bus.logs import LogWriter
from bus.requests import call


async def stored(nc, eventually, size: int) -> None:
    """Output is published without waiting: wait until that many bytes are there."""

    async def there() -> bool:
        return sum([len(chunk.data) async for chunk in logs.read(nc, "p", "sb-1")]) == size

    await eventually(there)


async def everything(nc, **which) -> list[tuple[str, bytes]]:
    return [(chunk.stream, chunk.data) async for chunk in logs.read(nc, "p", "sb-1", **which)]


def test_small_writes_become_few_messages_of_whole_lines(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            async with LogWriter(nc) as writer:
                for number in range(5000):
                    writer.write("p", "sb-1", "stdout", b"line %d\n" % number)
                writer.write("p", "sb-1", "stderr", b"no end of line")
                writer.write("p", "sb-2", "stdout", b"another sandbox\n")
                assert writer.buffered > 48_000
            assert writer.buffered == 0
            await stored(nc, eventually, 48_904)
            found = await everything(nc, stream="stdout")
            assert b"".join(data for _, data in found) == b"".join(b"line %d\n" % number for number in range(5000))
            assert len(found) == 2
            assert all(data.endswith(b"\n") for _, data in found)
            assert ("stderr", b"no end of line") in await everything(nc)

    run(main())


def test_a_long_line_is_cut_and_nothing_of_it_lost(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            async with LogWriter(nc) as writer:
                writer.write("p", "sb-1", "stdout", b"x" * 100_000)
            await stored(nc, eventually, 100_000)
            found = await everything(nc)
            assert sum(len(data) for _, data in found) == 100_000
            assert max(len(data) for _, data in found) <= logs.MESSAGE

    run(main())


def test_what_does_not_fit_is_dropped_and_the_gap_is_said(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            async with LogWriter(nc, buffer=1000) as writer:
                writer.write("p", "sb-1", "stdout", b"a" * 900)
                writer.write("p", "sb-1", "stdout", b"b" * 900)
                writer.write("p", "sb-1", "stdout", b"c" * 900)
                assert writer.buffered == 900
            await stored(nc, eventually, 926)
            assert await everything(nc) == [("stdout", b"a" * 900), ("runtime", b"1800 bytes of stdout lost\n")]

    run(main())


def test_reading_begins_where_it_is_asked_to(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            async with LogWriter(nc) as writer:
                writer.write("p", "sb-1", "stdout", b"one\n")
                await writer.flush()
                writer.write("p", "sb-1", "stdout", b"two\n")
            await stored(nc, eventually, 8)
            first, second = [chunk async for chunk in logs.read(nc, "p", "sb-1")]
            assert [c.data async for c in logs.read(nc, "p", "sb-1", after=first.seq)] == [b"two\n"]
            assert [c.data async for c in logs.read(nc, "p", "sb-1", since=second.time)] == [b"two\n"]
            assert abs(datetime.now(UTC) - second.time) < timedelta(seconds=30)
            assert await everything(nc, since=datetime.now(UTC) + timedelta(hours=1)) == []

    run(main())


def test_following_says_what_is_there_and_what_comes_and_leaves_no_consumer(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc, LogWriter(nc, flush_s=0.01) as writer:
            writer.write("p", "sb-1", "stdout", b"before\n")
            async with aclosing(logs.follow(nc, "p", "sb-1")) as chunks:
                assert (await anext(chunks)).data == b"before\n"
                writer.write("p", "sb-1", "stderr", b"after\n")
                chunk = await anext(chunks)
                assert (chunk.stream, chunk.data) == ("stderr", b"after\n")

            async def none_left() -> bool:
                return (await call(nc, "CONSUMER.NAMES.LOGS"))["total"] == 0

            await eventually(none_left)

    run(main())


def test_following_goes_on_through_a_killed_server_without_gap_or_repetition(connecting, server, run, eventually) -> None:
    async def main() -> None:
        async with (
            connecting(streams=True) as nc,
            LogWriter(nc, flush_s=0.01) as writer,
            aclosing(logs.follow(nc, "p", "sb-1")) as chunks,
        ):
            for number in range(3):
                writer.write("p", "sb-1", "stdout", b"%d\n" % number)
                assert (await anext(chunks)).data == b"%d\n" % number
            server.kill()
            await eventually(lambda: not nc.is_connected)
            writer.write("p", "sb-1", "stdout", b"while away\n")
            await asyncio.to_thread(server.start)
            assert (await asyncio.wait_for(anext(chunks), 20)).data == b"while away\n"
            writer.write("p", "sb-1", "stdout", b"after\n")
            assert (await asyncio.wait_for(anext(chunks), 20)).data == b"after\n"

    run(main())


def test_a_follower_that_does_not_look_holds_a_bounded_number_of_messages(connecting, run, eventually, monkeypatch) -> None:
    monkeypatch.setattr(logs, "WINDOW", 8)

    async def main() -> None:
        async with connecting(streams=True) as nc, aclosing(logs.follow(nc, "p", "sb-1")) as chunks:
            async with LogWriter(nc) as writer:
                for number in range(100):
                    writer.write("p", "sb-1", "stdout", b"%d" % number)
                    await writer.flush()
            assert (await anext(chunks)).data == b"0"

            async def eight_are_here() -> bool:
                (name,) = (await call(nc, "CONSUMER.NAMES.LOGS"))["consumers"]
                return (await call(nc, f"CONSUMER.INFO.LOGS.{name}"))["num_ack_pending"] == 8

            await eventually(eight_are_here)
            assert [(await anext(chunks)).data for _ in range(99)] == [b"%d" % number for number in range(1, 100)]

    run(main())
