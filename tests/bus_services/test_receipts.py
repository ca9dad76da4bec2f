"""Receipts: the first answer to a command id stays, in memory and on the bus."""

from __future__ import annotations

import asyncio

import pytest

from bus import receipts
from bus.receipts import Receipt, Receipts

pytestmark = pytest.mark.quick


def test_a_receipt_is_found_at_once_by_its_writer_and_later_by_everybody(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine, other = Receipts(nc), Receipts(nc)
            assert await mine.get("p", "c-1") is None
            mine.put_soon("p", "c-1", "digest", {"result": {"x": [1, None]}})
            kept = Receipt("digest", {"result": {"x": [1, None]}})
            assert await mine.get("p", "c-1") == kept
            await mine.flush()
            assert await other.get("p", "c-1") == kept
            assert await other.get("q", "c-1") is None

    run(main())


def test_the_first_receipt_stays(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            one, two = Receipts(nc), Receipts(nc)
            one.put_soon("p", "c-1", "first", {})
            await one.flush()
            two.put_soon("p", "c-1", "second", {})
            one.put_soon("p", "c-1", "third", {})
            await asyncio.gather(one.flush(), two.flush())
            assert (await Receipts(nc).get("p", "c-1")) == Receipt("first", {})

    run(main())


def test_receipts_outlive_a_killed_server_and_one_that_is_away(connecting, server, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine = Receipts(nc)
            mine.put_soon("p", "before", "d", {})
            await mine.flush()
            server.kill()
            mine.put_soon("p", "while-away", "d", {})
            await asyncio.to_thread(server.start)
            await mine.flush()
            other = Receipts(nc)
            assert await other.get("p", "before") == await other.get("p", "while-away") == Receipt("d", {})

    run(main())


def test_memory_is_bounded(connecting, run, monkeypatch) -> None:
    monkeypatch.setattr(receipts, "CACHED", 10)
    monkeypatch.setattr(receipts, "BACKLOG", 20)

    async def main() -> None:
        async with connecting(streams=True) as nc:
            mine = Receipts(nc)
            for number in range(100):
                mine.put_soon("p", f"c-{number}", "d", {})
            assert (len(mine._known), len(mine._writing)) == (10, 20)
            await mine.flush()
            assert await mine.get("p", "c-0") is not None
            assert await mine.get("p", "c-50") is None

    run(main())
