"""Snapshots between this node and the store that all nodes share: as chunks, each sent once, each verified when it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agents.keyed import KeyedLocks
from agents.ports import Roots
from agents.storage import packing
from agents.storage.unpacking import Unpacker, read_index
from domain.nodes.orders import SnapshotExported

AT_ONCE: Final = 4
"""Chunks under way at one time: what a transfer holds in memory is that many times a few of their sizes."""


class Described(Protocol):
    """A manifest: the first ``index`` of ``chunks`` describe the others."""

    @property
    def kind(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def chunks(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Chunks:
    """The shared store: chunks by their digest, manifests by project, snapshot and digest. Raises ``Refused``."""

    missing: Callable[[Iterable[str]], Awaitable[set[str]]]
    put: Callable[[str, bytes], Awaitable[int]]
    get: Callable[[str], Awaitable[bytes]]
    describe: Callable[[str, str, str, str, int, int, tuple[str, ...]], Awaitable[str]]
    """(project, snapshot, kind, artifact, bytes, index, chunks) to the digest of what was stored."""
    described: Callable[[str, str, str], Awaitable[Described]]


class Vault:
    """Sends and fetches. Several sandboxes that start from one snapshot wait for one fetch.

    ``crash`` is told where it is (``agents/crashpoints.py``).
    """

    def __init__(self, chunks: Chunks, crash: Callable[[str], None] = lambda _: None) -> None:
        self._chunks = chunks
        self._crash = crash
        self._lock = KeyedLocks()

    async def send(self, roots: Roots, project: str, snapshot_id: str) -> SnapshotExported:
        """Store a snapshot's content: the manifest first, then what is not there (``bus/chunks.py`` says why in this order)."""
        kind, artifact, layers = roots.layers(snapshot_id)
        packed = await asyncio.to_thread(packing.pack, layers)
        index = await asyncio.to_thread(packed.index)
        pieces = {packing.digest(part): part for part in packing.cut(index)}
        names = (*pieces, *packed.pieces)
        size = packed.size_bytes
        manifest = await self._chunks.describe(project, snapshot_id, kind, artifact, size, len(pieces), names)
        self._crash("export-manifest:after")
        missing = await self._chunks.missing(names)
        room = asyncio.Semaphore(AT_ONCE)

        async def put(digest: str) -> int:
            async with room:
                known = pieces.get(digest)
                data = await asyncio.to_thread(packing.content, packed.pieces[digest]) if known is None else known
                moved = await self._chunks.put(digest, data)
                self._crash("export-chunk:after")
                return moved

        moved = [task.result() for task in await _all(put(digest) for digest in sorted(missing))]
        self._crash("export-chunks:after")
        return SnapshotExported(
            manifest=manifest, kind=kind, size_bytes=size, chunks=len(names), moved_chunks=len(moved), moved_bytes=sum(moved)
        )

    async def ensure(self, roots: Roots, project: str, snapshot_id: str, artifact_id: str, manifest: str) -> None:
        """Have the snapshot here. Raises ``Refused`` (``object.not-found``, ``object.corrupt``), ``RuntimeFault``."""
        async with self._lock(snapshot_id):
            if snapshot_id in (await roots.list()).snapshots:
                return
            what = await self._chunks.described(project, snapshot_id, manifest)
            index = b"".join([await self._chunks.get(digest) for digest in what.chunks[: what.index]])
            entries = read_index(index)

            async def fill(targets: list[Path]) -> None:
                makers = [Unpacker(target, layer) for target, layer in zip(targets, entries, strict=True)]
                for maker in makers:
                    await asyncio.to_thread(maker.begin)
                await self._fill(makers, what.chunks[what.index :])
                for maker in makers:
                    await asyncio.to_thread(maker.finish)

            await roots.receive(snapshot_id, artifact_id, what.kind, len(entries), fill)
            self._crash("fetch:after")

    async def _fill(self, makers: list[Unpacker], digests: tuple[str, ...]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def bring(number: int, digest: str) -> None:
            async with room:
                data = await self._chunks.get(digest)
                self._crash("fetch-chunk:after")
                for maker in makers:
                    await asyncio.to_thread(maker.piece, number, data)

        await _all(bring(number, digest) for number, digest in enumerate(digests))


async def _all(work: Iterable[Awaitable[int | None]]) -> list[asyncio.Task[int]]:
    """Run all of it; the first failure ends the others, and is raised as it was."""
    try:
        async with asyncio.TaskGroup() as group:
            return [group.create_task(one) for one in work]  # type: ignore[arg-type]  # coroutines, of either result
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
