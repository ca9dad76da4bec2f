"""Files in the object store: whole or not at all, verified, bounded in memory, through kills, cuts and concurrent writers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from datetime import timedelta

import pytest

from bus import direct, objectparts, objects
from bus.objects import CHUNK, Stat
from bus.requests import call, store
from domain.kernel.errors import Refused

BUCKET = "artifacts"


def made(path, size: int, seed: int = 0) -> str:
    """A file of that size; returns its SHA-256."""
    block = hashlib.sha256(bytes([seed])).digest() * (CHUNK // 32)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while size:
            part = block[: min(size, len(block))]
            file.write(part)
            digest.update(part)
            size -= len(part)
    return digest.hexdigest()


def names(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def stored(nc) -> int:
    return (await call(nc, f"STREAM.INFO.OBJ_{BUCKET}"))["state"]["messages"]


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 20 * CHUNK])
def test_a_file_comes_back_as_it_was_put(connecting, run, tmp_path, size) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", size)
        steps: list[tuple[int, int]] = []
        async with connecting(streams=True) as nc:
            put = await objects.put_file(nc, BUCKET, "rfs-1", tmp_path / "in", sha256=sha256)
            assert put == await objects.stat(nc, BUCKET, "rfs-1") == Stat("rfs-1", size, sha256, -(-size // CHUNK), put.nuid)
            got = await objects.get_file(nc, BUCKET, "rfs-1", tmp_path / "d" / "out", sha256=sha256, progress=lambda *s: steps.append(s))
            assert got == size
            assert (tmp_path / "d" / "out").read_bytes() == (tmp_path / "in").read_bytes()
            assert await objects.check(nc, BUCKET, "rfs-1", sha256)
            assert (steps or [(0, 0)])[-1] == (size, size)

    run(main())


def test_other_tools_can_read_what_was_put(connecting, run, tmp_path) -> None:
    async def main() -> None:
        made(tmp_path / "in", 3 * CHUNK)
        async with connecting(streams=True) as nc:
            await objects.put_file(nc, BUCKET, "rfs-1", tmp_path / "in")
            theirs = await (await nc.jetstream().object_store(BUCKET)).get("rfs-1")
            assert theirs.data == (tmp_path / "in").read_bytes()

    run(main())


def test_the_same_content_again_stores_nothing_and_other_content_replaces_it(connecting, run, tmp_path) -> None:
    async def main() -> None:
        one, two = made(tmp_path / "one", CHUNK * 2), made(tmp_path / "two", CHUNK, seed=1)
        async with connecting(streams=True) as nc:
            first = await objects.put_file(nc, BUCKET, "x", tmp_path / "one", sha256=one)
            assert await objects.put_file(nc, BUCKET, "x", tmp_path / "one", sha256=one) == first
            assert await stored(nc) == 3
            await objects.put_file(nc, BUCKET, "x", tmp_path / "two", sha256=two)
            with pytest.raises(Refused, match="not"):
                await objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=one)
            assert await objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=two) == CHUNK

    run(main())


def test_wrong_missing_and_deleted_content_is_refused_and_leaves_no_file(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 2)
        out = tmp_path / "out"
        out.write_bytes(b"before")
        async with connecting(streams=True) as nc:
            with pytest.raises(Refused) as refused:
                await objects.get_file(nc, BUCKET, "x", out, sha256=sha256)
            assert refused.value.code == "object.not-found"
            with pytest.raises(Refused) as refused:
                await objects.put_file(nc, BUCKET, "x", tmp_path / "in", sha256="0" * 64)
            assert refused.value.code == "object.corrupt"
            assert await stored(nc) == 0
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            with pytest.raises(Refused) as refused:
                await objects.get_file(nc, BUCKET, "x", out, sha256="0" * 64)
            assert refused.value.code == "object.corrupt"
            await objects.delete(nc, BUCKET, "x")
            await objects.delete(nc, BUCKET, "x")
            assert not await objects.exists(nc, BUCKET, "x")
            assert await stored(nc) == 0
            assert (names(tmp_path), out.read_bytes()) == (["in", "nats", "out"], b"before")

    run(main())


def test_bytes_that_were_altered_in_the_store_are_noticed(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 2)
        async with connecting(streams=True) as nc:
            put = await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            chunks = await direct.batch(nc, f"OBJ_{BUCKET}", f"$O.{BUCKET}.C.{put.nuid}")
            await call(nc, f"STREAM.PURGE.OBJ_{BUCKET}", {"filter": f"$O.{BUCKET}.C.{put.nuid}"})
            for message in reversed(chunks.messages):
                await store(nc, message.subject, message.data[::-1])
            with pytest.raises(Refused, match="bytes stored"):
                await objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256)
            assert not await objects.check(nc, BUCKET, "x", sha256)
            assert not (tmp_path / "out").exists()

    run(main())


def test_transfers_go_on_through_a_killed_server(connecting, server, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 40)
        async with connecting(streams=True) as nc:
            for transfer in (
                lambda note: objects.put_file(nc, BUCKET, "x", tmp_path / "in", sha256=sha256, progress=note),
                lambda note: objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256, progress=note),
            ):
                half = asyncio.Event()
                going = asyncio.create_task(transfer(lambda done, total, half=half: half.set() if 4 * done >= total else None))
                await half.wait()
                server.kill()
                await asyncio.to_thread(server.start)
                await going
            assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()

    run(main())


def test_a_cancelled_transfer_leaves_nothing(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 40)
        async with connecting(streams=True) as nc:

            async def cancelled(transfer) -> None:
                begun = asyncio.Event()
                task = asyncio.create_task(transfer(lambda *_: begun.set()))
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

            await cancelled(lambda note: objects.put_file(nc, BUCKET, "x", tmp_path / "in", progress=note))
            assert await stored(nc) == 0
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            await cancelled(lambda note: objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256, progress=note))
            assert names(tmp_path) == ["in", "nats"]

    run(main())


def test_what_a_killed_download_left_is_removed_by_the_next_and_a_running_one_is_spared(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK)
        (tmp_path / ".out.dead.part").write_bytes(b"half")
        os.utime(tmp_path / ".out.dead.part", (0, 0))
        async with connecting(streams=True) as nc:
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            await asyncio.gather(*(objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256) for _ in range(4)))
            assert names(tmp_path) == ["in", "nats", "out"]

    run(main())


def test_sweeping_removes_what_no_description_names_and_spares_what_is_young(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK)
        async with connecting(streams=True) as nc:
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            await store(nc, f"$O.{BUCKET}.C.abandoned", b"bytes")
            assert await objects.sweep(nc, BUCKET) == 0
            assert await objects.sweep(nc, BUCKET, timedelta()) == 1
            assert await stored(nc) == 2
            assert await objects.check(nc, BUCKET, "x", sha256)

    run(main())


def test_a_reader_is_told_when_the_object_is_replaced_under_it(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 40)
        async with connecting(streams=True) as nc:
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            begun = asyncio.Event()
            reading = asyncio.create_task(
                objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256, progress=lambda *_: begun.set())
            )
            await begun.wait()
            await objects.delete(nc, BUCKET, "x")
            with pytest.raises(Refused) as refused:
                await reading
            assert (refused.value.code, refused.value.retryable) == ("object.replaced", True)

    run(main())


def test_memory_stays_bounded(connecting, run, tmp_path) -> None:
    async def main() -> None:
        sha256 = made(tmp_path / "in", CHUNK * 100)
        async with connecting(streams=True) as nc:
            tracemalloc.start()
            await objects.put_file(nc, BUCKET, "x", tmp_path / "in")
            await objects.get_file(nc, BUCKET, "x", tmp_path / "out", sha256=sha256)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 64 * CHUNK

    run(main())


@pytest.mark.parametrize("writers", [1, 3])
def test_a_part_is_read_from_where_it_begins(connecting, run, tmp_path, writers) -> None:
    """Also where several files' chunks lie between each other in the stream."""

    async def main() -> None:
        content = {}
        for n in range(writers):
            made(tmp_path / f"in{n}", 12 * CHUNK + 99, seed=n)
            with (tmp_path / f"in{n}").open("r+b") as file:
                for chunk in range(13):  # each chunk another one
                    file.seek(chunk * CHUNK)
                    file.write(bytes([chunk]))
            content[n] = (tmp_path / f"in{n}").read_bytes()
        async with connecting(streams=True) as nc:
            puts = (objects.put_file(nc, BUCKET, f"rfs-{n}", tmp_path / f"in{n}") for n in range(writers))
            stats = await asyncio.gather(*puts)
            for n, what in enumerate(stats):
                for start, size in ((0, 1), (CHUNK - 1, 2), (7 * CHUNK + 5, 3 * CHUNK), (12 * CHUNK, 99), (0, what.size), (5, 0)):
                    got = b"".join([part async for part in objectparts.read(nc, BUCKET, what, start, size)])
                    assert got == content[n][start : start + size]
            await objects.delete(nc, BUCKET, "rfs-0")
            with pytest.raises(Refused) as gone:
                await anext(objectparts.read(nc, BUCKET, stats[0], 0, 1))
            assert gone.value.code == "object.replaced"

    run(main())


def test_a_part_is_not_made_of_chunks_that_do_not_say_which_they_are(connecting, run, tmp_path) -> None:
    async def main() -> None:
        async with connecting(streams=True) as nc:
            for _ in range(3):
                await store(nc, objects.chunks_of(BUCKET, "n"), b"x" * 10)
            with pytest.raises(Refused) as corrupt:
                await anext(objectparts.read(nc, BUCKET, Stat("rfs-1", 30, "0" * 64, 3, "n"), 25, 1))
            assert corrupt.value.code == "object.corrupt"

    run(main())
