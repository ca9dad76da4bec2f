"""Chunks by their digest: stored once, never replaced, collected when no manifest names them any more, and not before."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from bus import chunks, subjects
from bus.chunkkeeper import SUBJECT, ChunkKeeper, ask_missing
from bus.chunks import Manifest, digest_of
from bus.requests import call, store
from domain.kernel.errors import Refused

pytestmark = pytest.mark.quick
ONE, TWO, THREE = b"one" * 1000, b"two" * 1000, b"three" * 1000
AT_ONCE = timedelta(0)


async def put(nc, *contents: bytes) -> int:
    return sum([await chunks.put(nc, digest_of(content), content) for content in contents])


def of(*contents: bytes) -> Manifest:
    return Manifest("copies", "rfs-1", sum(map(len, contents)), 1, tuple(map(digest_of, contents)))


async def nobody(project: str, owner: str, digest: str) -> bool:
    return False


async def everybody(project: str, owner: str, digest: str) -> bool:
    return True


async def there(nc) -> set[str]:
    return {digest_of(content) for content in (ONE, TWO, THREE)} - await chunks.missing(nc, map(digest_of, (ONE, TWO, THREE)))


def test_a_content_is_stored_once_and_compressed_and_comes_back(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            assert 0 < await put(nc, ONE) < len(ONE)
            assert await put(nc, ONE) == 0
            assert await chunks.get(nc, digest_of(ONE)) == ONE
            assert await chunks.missing(nc, [digest_of(ONE), digest_of(TWO), digest_of(TWO)]) == {digest_of(TWO)}
            assert (await call(nc, "STREAM.INFO.CHUNKS"))["state"]["messages"] == 1

    run(main())


def test_what_is_not_its_content_is_neither_stored_nor_believed(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            with pytest.raises(Refused, match="not that of"):
                await chunks.put(nc, digest_of(ONE), TWO)
            with pytest.raises(Refused) as absent:
                await chunks.get(nc, digest_of(ONE))
            assert absent.value.code == "object.not-found"
            for subject, data in ((digest_of(ONE), b"rubbish"), (digest_of(TWO), b"\x78\x01\x03\x00\x00\x00\x00\x01")):
                await store(nc, subjects.chunk(subject), data)
                with pytest.raises(Refused) as bad:
                    await chunks.get(nc, subject)
                assert bad.value.code == "object.corrupt"
            reply = await nc.request(subjects.chunk(digest_of(ONE)), b"in its place")
            assert b"maximum messages per subject" in reply.data

    run(main())


def test_chunks_go_with_the_last_manifest_that_names_them(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await chunks.put_manifest(nc, "default", "snap-1", of(ONE, TWO))
            await chunks.put_manifest(nc, "default", "snap-2", of(TWO, THREE))
            await put(nc, ONE, TWO, THREE)
            assert await chunks.collect(nc, everybody, AT_ONCE) == 0
            await chunks.drop_manifests(nc, "default", "snap-1")
            assert await chunks.collect(nc, everybody, AT_ONCE) == 1
            assert await there(nc) == {digest_of(TWO), digest_of(THREE)}
            assert await chunks.collect(nc, nobody, timedelta(hours=1)) == 0, "it may be on its way to be wanted"
            assert await chunks.collect(nc, nobody, AT_ONCE) == 2
            assert (await call(nc, "STREAM.INFO.CHUNKS"))["state"]["messages"] == 0

    run(main())


def test_chunks_that_are_stored_while_others_are_collected_stay(connecting, run) -> None:
    """Their manifest came after the collector had read all manifests; they came after it had listed the chunks."""

    async def main() -> None:
        async with connecting(streams=True) as nc, connecting() as writer:
            await chunks.put_manifest(nc, "default", "snap-1", of(ONE))
            await put(nc, ONE, TWO)

            async def meanwhile(project: str, owner: str, digest: str) -> bool:
                await put(writer, THREE)
                return True

            assert await chunks.collect(nc, meanwhile, AT_ONCE) == 1
            await chunks.put_manifest(writer, "default", "snap-2", of(THREE))
            assert await there(nc) == {digest_of(ONE), digest_of(THREE)}

    run(main())


def test_a_listing_that_fails_takes_nothing_away(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            await chunks.put_manifest(nc, "default", "snap-1", of(ONE))
            await put(nc, ONE, TWO)

            async def fails(project: str, owner: str, digest: str) -> bool:
                raise Refused("bus.unavailable", "gone", retryable=True)

            with pytest.raises(Refused):
                await chunks.collect(nc, fails, AT_ONCE)
            assert await there(nc) == {digest_of(ONE), digest_of(TWO)}

    run(main())


def test_many_writers_of_one_content_leave_one(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            stored = await asyncio.gather(*(chunks.put(nc, digest_of(ONE), ONE) for _ in range(20)))
            assert sum(bool(size) for size in stored) == 1
            manifests = [await chunks.put_manifest(nc, "default", "snap-1", of(ONE, TWO)) for _ in range(2)]
            assert await chunks.get_manifest(nc, "default", "snap-1", manifests[1]) == of(ONE, TWO)

    run(main())


def test_a_node_asks_the_control_plane_what_is_missing(connecting, run) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc, connecting() as node, ChunkKeeper(nc):
            await put(nc, ONE)
            many = [f"{n:064x}" for n in range(1500)]
            assert await ask_missing(node, [digest_of(ONE), *many]) == set(many)
            for body in (b"rubbish", b"{}", b'["*"]', b'["../x"]'):
                reply = await node.request(SUBJECT, body)
                assert b"query.invalid" in reply.data

    run(main())
