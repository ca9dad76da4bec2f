"""Artifacts in the object store: files in chunks, put once, fetched fast, and never believed without their digest.

The layout is the NATS object store's own (``$O.<bucket>.C.<nuid>`` chunks, ``$O.<bucket>.M.<name>`` description), so that other tools can
read it. Reading is ours: nats-py takes one chunk at a time, direct-get batches are 20-50 times as fast
(reference/jetstream-eventstore.md §1.6).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

import orjson
import structlog
from nats.aio.client import Client

from bus import direct
from bus.requests import ApiError, call, patiently, store
from bus.tempfiles import replacing
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]

CHUNK: Final = 1024 * 1000
"""Bytes per message: below every server's default payload limit, and few enough messages to read a gigabyte in a second."""
BATCH: Final = 16
"""Chunks asked for at once: what a reader holds in memory."""
STALL_S: Final = 60.0
"""How long a transfer goes on without progress, through reconnects and elections, before it gives up."""
BEHIND_S: Final = 2.0
"""How long a replica may lag behind (1.3 ms was the worst seen, reference/jetstream-eventstore.md §1.4) before nothing means nothing."""
_DIGEST: Final = "SHA-256="


@dataclass(frozen=True, slots=True)
class Stat:
    """What is stored under a name. ``nuid`` names its chunks."""

    name: str
    size: int
    sha256: str
    chunks: int
    nuid: str


def stream_of(bucket: str) -> str:
    return f"OBJ_{bucket}"


def chunks_of(bucket: str, nuid: str) -> str:
    return f"$O.{bucket}.C.{nuid}"


def _description(bucket: str, name: str) -> str:
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


async def stat(nc: Client, bucket: str, name: str, *, leader: bool = False) -> Stat | None:
    """What is stored under ``name``, None for nothing; by the leader's word if wanted, which nodes have no right to ask for."""
    found = await direct.get(nc, stream_of(bucket), leader=leader, last_by_subj=_description(bucket, name))
    return None if found is None else _read(found.data)


def _read(data: bytes) -> Stat | None:
    try:
        said = orjson.loads(data)
        if said.get("deleted"):
            return None
        digest = base64.urlsafe_b64decode(said["digest"].removeprefix(_DIGEST))
        return Stat(said["name"], int(said["size"]), digest.hex(), int(said["chunks"]), said["nuid"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("object.corrupt", f"a description in the object store is unreadable: {error!r}") from None


async def exists(nc: Client, bucket: str, name: str) -> bool:
    return await stat(nc, bucket, name) is not None


async def put_file(nc: Client, bucket: str, name: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> Stat:
    """Store a file under ``name``; its content appears as a whole or not at all. The same content again stores nothing.

    Raises ``Refused``: ``object.corrupt`` when the file is not ``sha256``, ``bus.unavailable`` when the bus stays away.
    """
    known = await stat(nc, bucket, name)
    if known is not None and known.sha256 == sha256:
        return known
    nuid = nc._nuid.next().decode()  # noqa: SLF001 - names as other object store clients make them
    try:
        made = await _send(nc, bucket, name, nuid, path, sha256, progress)
    except BaseException:
        await asyncio.shield(_discard(nc, bucket, nuid))
        raise
    # from here on chunks stay whatever happens: a description whose ack was lost may already name them
    await store(nc, _description(bucket, name), _described(bucket, made), msg_id=nuid)
    if known is not None:
        await _discard(nc, bucket, known.nuid)
    return made


async def _send(nc: Client, bucket: str, name: str, nuid: str, path: Path, sha256: str | None, progress: Progress | None) -> Stat:
    """One chunk after the other: their order in the stream is the file's, also when one has to be sent again."""
    subject, digest, size, chunks = chunks_of(bucket, nuid), hashlib.sha256(), 0, 0
    with await asyncio.to_thread(path.open, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        while data := await asyncio.to_thread(_next_chunk, file, digest):
            await store(nc, subject, data, msg_id=f"{nuid}-{chunks}", within=STALL_S)
            chunks += 1
            size += len(data)
            if progress is not None:
                progress(size, max(size, total))
    if sha256 not in {None, digest.hexdigest()}:
        raise Refused("object.corrupt", f"{path.name} is {digest.hexdigest()}, not {sha256}")
    return Stat(name, size, digest.hexdigest(), chunks, nuid)


def _next_chunk(file: IO[bytes], digest: hashlib._Hash) -> bytes:
    data = file.read(CHUNK)
    digest.update(data)
    return data


def _described(bucket: str, made: Stat) -> bytes:
    return orjson.dumps(
        {
            "name": made.name,
            "bucket": bucket,
            "nuid": made.nuid,
            "size": made.size,
            "chunks": made.chunks,
            "digest": _DIGEST + base64.urlsafe_b64encode(bytes.fromhex(made.sha256)).decode(),
            "mtime": datetime.now(UTC),
            "options": {"max_chunk_size": CHUNK},
        }
    )


async def get_file(nc: Client, bucket: str, name: str, path: Path, *, sha256: str, progress: Progress | None = None) -> int:
    """Fetch ``name`` to ``path`` and return its size. ``path`` appears when all of it is there, verified and on disk.

    Raises ``Refused``: ``object.not-found``, ``object.corrupt`` when what is stored is not ``sha256``, ``bus.unavailable``, and
    ``object.replaced`` (retryable) when somebody put or deleted it meanwhile.
    """
    what = await _find(nc, bucket, name, sha256)
    details = {"id": name, "sha256": sha256}
    if what.sha256 != sha256:
        raise Refused("object.corrupt", f"{name} is stored as {what.sha256}, not {sha256}", details=details)
    async with replacing(path) as file:
        digest = await _receive(nc, bucket, what, file, progress)
        if digest != sha256:
            raise Refused("object.corrupt", f"the bytes stored as {name} are {digest}, not {sha256}", details=details)
    return what.size


async def _find(nc: Client, bucket: str, name: str, sha256: str) -> Stat:
    """What is stored, patient with a replica that is behind."""

    async def once(_: float) -> Stat:
        what = await stat(nc, bucket, name)
        if what is None:
            raise Refused("object.not-found", f"nothing is stored as {name}", details={"id": name, "sha256": sha256})
        return what

    return await patiently(once, BEHIND_S, frozenset({"object.not-found"}))


async def present(nc: Client, bucket: str, name: str, sha256: str, size: int) -> bool:
    """Whether ``name`` is stored under this digest and size with none of its chunks missing. Cheap: reads no chunk, see ``check``."""
    what = await stat(nc, bucket, name, leader=True)
    if what is None or (what.sha256, what.size) != (sha256, size):
        return False
    subject = chunks_of(bucket, what.nuid)
    state = (await call(nc, f"STREAM.INFO.{stream_of(bucket)}", {"subjects_filter": subject}))["state"]
    return bool((state.get("subjects") or {}).get(subject, 0) == what.chunks)


async def check(nc: Client, bucket: str, name: str, sha256: str) -> bool:
    """Whether every stored byte of ``name`` is there and right. Reads all of it. Raises ``Refused`` when the bus stays away."""
    what = await stat(nc, bucket, name)
    return what is not None and what.sha256 == sha256 == await _receive(nc, bucket, what, None, None)


async def _receive(nc: Client, bucket: str, what: Stat, file: IO[bytes] | None, progress: Progress | None) -> str:
    """Write all chunks and return their digest. A batch that was cut off is asked for again, from where it began."""
    digest, seq, size, missing = hashlib.sha256(), 1, 0, what.chunks

    async def more(_: float) -> direct.Page:
        got = await direct.batch(nc, stream_of(bucket), chunks_of(bucket, what.nuid), seq, min(BATCH, missing))
        if got.messages:
            return got
        now = await stat(nc, bucket, what.name)
        if now is None or now.nuid != what.nuid:
            raise Refused("object.replaced", f"{what.name} was replaced while it was read", retryable=True)
        raise Refused("bus.unavailable", f"{missing} of {what.chunks} chunks of {what.name} are not there", retryable=True)

    while missing:
        got = await patiently(more, STALL_S)
        await asyncio.to_thread(_write, file, digest, got.messages)
        missing -= len(got.messages)
        size += sum(len(message.data) for message in got.messages)
        seq = got.messages[-1].seq + 1
        if progress is not None:
            progress(size, what.size)
    return digest.hexdigest()


def _write(file: IO[bytes] | None, digest: hashlib._Hash, messages: list[direct.Stored]) -> None:
    for message in messages:
        digest.update(message.data)
        if file is not None:
            file.write(message.data)


async def delete(nc: Client, bucket: str, name: str) -> None:
    """Forget ``name``: description first, so that nobody begins to read what is going away. Nothing there is fine."""
    known = await stat(nc, bucket, name, leader=True)
    await call(nc, f"STREAM.PURGE.{stream_of(bucket)}", {"filter": _description(bucket, name)})
    if known is not None:
        await call(nc, f"STREAM.PURGE.{stream_of(bucket)}", {"filter": chunks_of(bucket, known.nuid)})


async def sweep(nc: Client, bucket: str, older_than: timedelta = timedelta(hours=1)) -> int:
    """Remove chunks that no description names, left by writers that died, and outdated descriptions. Returns how many files' worth.

    Only for the control plane: nodes have no right to purge, so what they abandon stays until this comes by.
    """
    used: dict[str, str] = {}
    seq = 1
    while seq:
        got = await direct.batch(nc, stream_of(bucket), f"$O.{bucket}.M.>", seq)
        for message in got.messages:
            if message.subject in used:
                await call(nc, f"STREAM.PURGE.{stream_of(bucket)}", {"filter": message.subject, "keep": 1})
            said = _read(message.data)
            used[message.subject] = said.nuid if said else ""
        seq = got.next_seq
    prefix = chunks_of(bucket, "")
    state = (await call(nc, f"STREAM.INFO.{stream_of(bucket)}", {"subjects_filter": prefix + ">"}))["state"]
    swept = 0
    for subject in state.get("subjects") or {}:
        if subject.removeprefix(prefix) in used.values():
            continue
        newest = await direct.get(nc, stream_of(bucket), last_by_subj=subject)
        if newest is not None and datetime.now(UTC) - datetime.fromisoformat(newest.time[:19] + "+00:00") >= older_than:
            await call(nc, f"STREAM.PURGE.{stream_of(bucket)}", {"filter": subject})
            swept += 1
    return swept


async def _discard(nc: Client, bucket: str, nuid: str) -> None:
    """Remove chunks, if this connection may; otherwise ``sweep`` does."""
    try:
        await call(nc, f"STREAM.PURGE.{stream_of(bucket)}", {"filter": chunks_of(bucket, nuid)}, within=1)
    except (Refused, ApiError) as error:
        log.info("objects.left-for-sweep", bucket=bucket, nuid=nuid, error=repr(error))
