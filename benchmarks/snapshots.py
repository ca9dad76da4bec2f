"""Stored snapshots: what N snapshots of one sandbox, with small changes between them, take in the store, and how long there and back.

Beside it what as many whole copies would take: the same content, compressed as one stream each by the same zlib level.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import zlib
from pathlib import Path

from agents.storage.copies import CopyRoots
from agents.vault import Chunks, Vault
from benchmarks.harness import Row
from bus import chunks
from bus.connection import Connection, connect
from bus.requests import call
from bus.server import Server
from bus.streams import ensure_streams
from bus.subjects import CHUNKS
from domain.nodes.orders import SnapshotExported

ARTIFACT = "rfs-1"
SMALL, LARGE = 2_000, 8
"""Files of a few KiB, and of some MiB."""


async def run(*, short: bool = False) -> list[Row]:
    count, scale = (3, 0.1) if short else (20, 1.0)
    with tempfile.TemporaryDirectory() as directory, Server(Path(directory) / "nats", sync="2m") as server:
        async with await connect(server.url, name="benchmark") as nc:
            await ensure_streams(nc)
            here, there = CopyRoots(Path(directory) / "here"), CopyRoots(Path(directory) / "there")
            return await _measure(nc, here, there, count, scale)


async def _measure(nc: Connection, here: CopyRoots, there: CopyRoots, count: int, scale: float) -> list[Row]:
    chance, vault = random.Random(1), Vault(_chunks(nc))
    root = await _root(here, chance, scale)
    sent, took, copies = [], [], 0
    for n in range(count):
        _change(root, chance, n)
        await here.snapshot("sb-1", f"snap-{n}")
        copies += await asyncio.to_thread(_compressed, root)
        began = time.perf_counter()
        sent.append(await vault.send(here, "default", f"snap-{n}"))
        took.append(time.perf_counter() - began)
    stored = int((await call(nc, f"STREAM.INFO.{CHUNKS}"))["state"]["bytes"])
    began = time.perf_counter()
    await vault.ensure(there, "default", "snap-0", ARTIFACT, sent[0].manifest)
    return _rows(sent, took, copies, stored, time.perf_counter() - began)


def _rows(sent: list[SnapshotExported], took: list[float], copies: int, stored: int, fetched: float) -> list[Row]:
    content = sum(one.size_bytes for one in sent)
    later = sent[1:]
    moved = sum(one.moved_bytes for one in later) / len(later)
    return [
        Row(f"bytes stored for {len(sent)} snapshots", _mb(stored), f"{_mb(copies)} as copies", copies / stored),
        Row("content of them", _mb(content), "", content / stored),
        Row("moved for the first", f"{_mb(sent[0].moved_bytes)}, {sent[0].moved_chunks} chunks", f"{_mb(sent[0].size_bytes)} of content"),
        Row("moved for each later one", _mb(int(moved)), "", moved / sent[0].moved_bytes),
        Row("time to store the first", f"{took[0] * 1000:.0f} ms", "", sent[0].size_bytes / took[0] / 1e6, "MB/s"),
        Row("time to store a later one", f"{sum(took[1:]) / len(later) * 1000:.0f} ms"),
        Row("time to fetch one elsewhere", f"{fetched * 1000:.0f} ms", "", sent[0].size_bytes / fetched / 1e6, "MB/s"),
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


async def _root(roots: CopyRoots, chance: random.Random, scale: float) -> Path:
    """A sandbox's root with files as software has them: text that repeats itself, and bytes that do not."""
    roots.directory.joinpath("artifacts", ARTIFACT, "tree").mkdir(parents=True)
    roots.directory.joinpath("artifacts", ARTIFACT, "manifest.json").write_text("{}")
    root = await roots.create("sb-1", ARTIFACT)
    for n in range(int(SMALL * scale)):
        folder = root / f"lib/part-{n // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        words = [f"name_{chance.randrange(500)} = {chance.randrange(100)}" for _ in range(chance.randrange(20, 400))]
        (folder / f"file-{n}").write_text("\n".join(words))
    for n in range(max(1, int(LARGE * scale))):
        (root / f"data-{n}").write_bytes(chance.randbytes(int(4e6)))
    return root


def _change(root: Path, chance: random.Random, n: int) -> None:
    """What a sandbox does between two snapshots: a few files written, one grown, one page of a large file changed."""
    (root / f"new-{n}").write_text(f"result {n}\n" * 200)
    with (root / "log").open("a") as log:
        log.write(f"line {n}\n" * 500)
    with (root / "data-0").open("r+b") as file:
        file.seek(chance.randrange(900) * 4096)
        file.write(chance.randbytes(4096))


def _compressed(root: Path) -> int:
    packer = zlib.compressobj(chunks.LEVEL)
    size = sum(len(packer.compress(path.read_bytes())) for path in sorted(root.rglob("*")) if path.is_file())
    return size + len(packer.flush())


def _chunks(nc: Connection) -> Chunks:
    """The store over one connection, as the agent has it."""

    async def describe(project: str, snapshot: str, kind: str, about: str, size: int, index: int, names: tuple[str, ...]) -> str:
        return await chunks.put_manifest(nc, project, snapshot, chunks.Manifest(kind, about, size, index, names))

    return Chunks(
        missing=lambda digests: chunks.missing(nc, digests),
        put=lambda digest, content: chunks.put(nc, digest, content),
        get=lambda digest: chunks.get(nc, digest),
        describe=describe,
        described=lambda project, snapshot, manifest: chunks.get_manifest(nc, project, snapshot, manifest),
    )
