"""Leases: one holder at a time, gone when it is not renewed, kept when it is."""

from __future__ import annotations

import asyncio

import pytest
from support.bus import connected

from bus.leases import Lease, LeaseLostError, Leases


def test_a_lease_has_one_holder_who_may_ask_again(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases = Leases(nc)
            mine = await leases.acquire("k", "me", 30)
            assert mine is not None
            assert mine.valid
            assert await leases.acquire("k", "you", 30) is None
            again = await leases.acquire("k", "me", 30)
            assert again is not None
            with pytest.raises(LeaseLostError):
                await leases.renew(mine)
            assert (await leases.renew(again)).seq > again.seq

    run(main())


def test_only_one_of_many_gets_it(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases = Leases(nc)
            got = await asyncio.gather(*(leases.acquire("k", f"holder-{n}", 30) for n in range(50)))
            assert sum(lease is not None for lease in got) == 1

    run(main())


def test_a_released_lease_is_free_at_once_and_releasing_a_lost_one_harms_nobody(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases = Leases(nc)
            mine = await leases.acquire("k", "me", 30)
            await leases.release(mine)
            yours = await leases.acquire("k", "you", 30)
            assert yours is not None
            await leases.release(mine)
            assert await leases.acquire("k", "me", 30) is None

    run(main())


def test_a_lease_ends_by_itself_also_after_it_was_renewed(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases = Leases(nc)
            mine = await leases.acquire("k", "me", 1)
            mine = await leases.renew(mine)

            async def free() -> Lease | None:
                return await leases.acquire("k", "you", 30)

            await eventually(free)
            assert not mine.valid
            with pytest.raises(LeaseLostError):
                await leases.renew(mine)

    run(main())


def test_a_held_lease_is_kept_beyond_its_time_and_handed_on_at_the_end(connecting, run, eventually) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases, order = Leases(nc), []

            async def second() -> None:
                async with leases.held("k", "you", 1):
                    order.append("second")

            async with leases.held("k", "me", 1) as mine:
                waiting = asyncio.create_task(second())
                await eventually(lambda: asyncio.get_running_loop().time() > mine.until + 0.5)
                assert not mine.lost.is_set()
                order.append("first")
            await waiting
            assert order == ["first", "second"]

    run(main())


def test_a_lease_that_cannot_be_kept_is_said_to_be_lost(connecting, server, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            async with Leases(nc).held("k", "me", 1) as mine:
                server.kill()
                await asyncio.wait_for(mine.lost.wait(), 5)
                assert not mine.valid
                await asyncio.to_thread(server.start)
            assert await Leases(nc).acquire("other", "me", 30) is not None

    run(main())


def test_a_lease_survives_a_killed_server(connecting, server, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            leases = Leases(nc)
            mine = await leases.acquire("k", "me", 60)
            server.kill()
            await asyncio.to_thread(server.start)
            assert await leases.acquire("k", "you", 60) is None
            assert (await leases.renew(mine)).valid

    run(main())


def test_letting_go_takes_no_longer_than_the_lease_would_have_lasted_when_the_bus_is_away(server, run) -> None:
    """A process that is told to end must not wait for a bus that is gone, for a lease that is gone by then too."""

    async def main() -> None:
        async with connected(server) as nc:
            async with asyncio.timeout(15):  # half of what a write to the bus waits for otherwise
                async with Leases(nc).held("k", "me", 1):
                    server.kill()

    run(main())
