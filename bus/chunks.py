"""Contents by their digest, each stored once however many need it, and manifests that say which of them make a whole.

A chunk's id is the SHA-256 of its content; what is stored is compressed. A subject takes one message and never another one, so that whoever
comes second with the same content stores nothing, and nobody can replace what others rely on (docs/adr/0019-snapshots-as-chunks.md).

Who stores puts the manifest first and the chunks after it; who collects lists the chunks first and the manifests after them, and takes away
what no manifest names, as far as it was there when it looked. So a chunk that is being stored is never taken. One that a new manifest has
found there, an instant before it is taken, is: therefore a manifest counts only once ``missing`` has found nothing, asked by the one who
also collects, and not meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
import structlog
from nats.aio.client import Client

from bus import direct, subjects
from bus.requests import ApiError, call, store
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

CHUNK: Final = 512 * 1024
"""Bytes of content in one chunk at most: below every server's payload limit also where nothing can be compressed."""
LEVEL: Final = 1
"""zlib's fastest: 5 times as fast as its default for a tenth more bytes."""
MAX_CHUNKS: Final = 20_000
"""Chunks that one manifest can name (10 GiB of content that nobody shares): it is one message."""
AT_ONCE: Final = 16
_FORMAT: Final = 1
_EXPECT_NONE: Final = {"Nats-Expected-Last-Subject-Sequence": "0"}
_KNOWN: Final = frozenset({10071, 10164})
"""``wrong last sequence``, or another one's is just being stored: it is there already, or will be."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a whole is made of. ``kind`` and ``about`` are for who reads it; the first ``index`` chunks describe the others."""

    kind: str
    about: str
    size_bytes: int
    index: int
    chunks: tuple[str, ...]

    def encode(self) -> bytes:
        """The same bytes for the same whole. Raises ``snapshot.too-large``."""
        if len(self.chunks) > MAX_CHUNKS:
            raise Refused("snapshot.too-large", f"{len(self.chunks)} chunks are more than {MAX_CHUNKS}")
        digests = base64.b64encode(bytes.fromhex("".join(self.chunks))).decode()
        said = {"about": self.about, "chunks": digests, "format": _FORMAT, "index": self.index, "kind": self.kind, "size": self.size_bytes}
        return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)

    @staticmethod
    def decode(data: bytes) -> Manifest:
        """Raises ``object.corrupt``."""
        try:
            said = orjson.loads(data)
            text = base64.b64decode(said["chunks"]).hex()
            chunks = tuple(text[at : at + 64] for at in range(0, len(text), 64))
            known = said["format"] == _FORMAT and all(len(chunk) == 64 for chunk in chunks)
            made = Manifest(said["kind"], said["about"], int(said["size"]), int(said["index"]), chunks)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused("object.corrupt", f"a manifest is unreadable: {error!r}") from None
        if not known:
            raise Refused("object.corrupt", f"a manifest has the format {said['format']}, which nobody knows here")
        return made


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def missing(nc: Client, digests: Iterable[str]) -> set[str]:
    """Which of these are not stored. Raises ``Refused`` (``bus.unavailable``)."""
    room = asyncio.Semaphore(AT_ONCE)

    async def look(digest: str) -> str | None:
        async with room:
            return None if await _is_stored(nc, digest) else digest

    async with asyncio.TaskGroup() as group:
        looks = [group.create_task(look(digest)) for digest in dict.fromkeys(digests)]
    return {found for task in looks if (found := task.result()) is not None}


async def _is_stored(nc: Client, digest: str) -> bool:
    """Is this one stored? By the leader's word, without reading it."""
    subject = subjects.chunk(digest)
    state = (await call(nc, f"STREAM.INFO.{subjects.CHUNKS}", {"subjects_filter": subject}))["state"]
    return bool((state.get("subjects") or {}).get(subject))


async def put(nc: Client, digest: str, content: bytes) -> int:
    """Store a chunk and return the bytes that this took; 0 when it is there. Raises ``object.corrupt`` when it is another one's content."""
    if digest_of(content) != digest:
        raise Refused("object.corrupt", f"the content is not that of chunk {digest}")
    data = await asyncio.to_thread(zlib.compress, content, LEVEL)
    return len(data) if await _once(nc, subjects.chunk(digest), data) else 0


async def _once(nc: Client, subject: str, data: bytes) -> bool:
    """True when it is stored by this call; a repetition of one whose answer was lost may say False."""
    try:
        await store(nc, subject, data, headers=_EXPECT_NONE)
    except ApiError as error:
        if error.err_code in _KNOWN:
            return False
        raise
    return True


async def get(nc: Client, digest: str) -> bytes:
    """A chunk's content. Raises ``object.not-found``, ``object.corrupt``, ``bus.unavailable``."""
    found = await direct.get(nc, subjects.CHUNKS, last_by_subj=subjects.chunk(digest))
    if found is None:
        raise Refused("object.not-found", f"chunk {digest} is not stored", details={"chunk": digest})
    return await asyncio.to_thread(_content, digest, found.data)


def _content(digest: str, data: bytes) -> bytes:
    try:
        content = zlib.decompressobj().decompress(data, CHUNK + 1)
    except zlib.error:
        content = b""
    if digest_of(content) != digest:
        raise Refused("object.corrupt", f"what is stored as chunk {digest} is something else", details={"chunk": digest})
    return content


async def drop(nc: Client, digest: str) -> None:
    """Take away what is stored under a digest, so that the right content can be."""
    await call(nc, f"STREAM.PURGE.{subjects.CHUNKS}", {"filter": subjects.chunk(digest)})


async def put_manifest(nc: Client, project: str, owner: str, manifest: Manifest) -> str:
    """Store a manifest of ``owner`` and return its digest. The same one again stores nothing."""
    data = manifest.encode()
    digest = digest_of(data)
    await _once(nc, subjects.manifest(project, owner, digest), data)
    return digest


async def get_manifest(nc: Client, project: str, owner: str, digest: str, *, leader: bool = False) -> Manifest:
    """Raises ``object.not-found``, ``object.corrupt``, ``bus.unavailable``. ``leader``: by its word, which nodes cannot ask for."""
    found = await direct.get(nc, subjects.CHUNKS, leader=leader, last_by_subj=subjects.manifest(project, owner, digest))
    if found is None:
        raise Refused("object.not-found", f"manifest {digest} of {owner} is not stored", details={"id": owner})
    if digest_of(found.data) != digest:
        raise Refused("object.corrupt", f"manifest {digest} of {owner} is something else", details={"id": owner})
    return Manifest.decode(found.data)


async def drop_manifests(nc: Client, project: str, owner: str) -> None:
    """Forget all manifests of ``owner``; ``collect`` takes what only they named. Nothing there is fine."""
    await call(nc, f"STREAM.PURGE.{subjects.CHUNKS}", {"filter": subjects.manifest(project, owner, "*")})


Keep = Callable[[str, str, str], Awaitable[bool]]
"""(project, owner, digest): is this manifest still wanted?"""


async def collect(nc: Client, keep: Keep, older_than: timedelta) -> int:
    """Take away manifests that nobody wants, once they are that old, and chunks that no manifest names. Returns how many chunks went.

    Raises ``Refused`` when the bus stays away: a listing that failed is never taken for an empty one.
    """
    state = (await call(nc, f"STREAM.INFO.{subjects.CHUNKS}"))["state"]
    candidates = [subject.rpartition(".")[2] async for subject in _subjects(nc, subjects.chunk("*"))]
    named = await _named(nc, keep, older_than)
    swept = 0
    for digest in candidates:
        if bytes.fromhex(digest) not in named:
            before = int(state["last_seq"]) + 1  # what was stored again since then stays
            await call(nc, f"STREAM.PURGE.{subjects.CHUNKS}", {"filter": subjects.chunk(digest), "seq": before})
            swept += 1
    return swept


async def _named(nc: Client, keep: Keep, older_than: timedelta) -> set[bytes]:
    """Digests that manifests name. One that cannot be read keeps nothing: nobody can restore from it."""
    named: set[bytes] = set()
    seq = 1
    while seq:
        page = await direct.batch(nc, subjects.CHUNKS, subjects.manifest("*", "*", "*"), seq)
        for message in page.messages:
            project, owner, digest = message.subject.split(".")[2:]
            if await keep(project, owner, digest) or datetime.now(UTC) - _instant(message.time) < older_than:
                named |= _digests(message.data)
            else:
                await call(nc, f"STREAM.PURGE.{subjects.CHUNKS}", {"filter": message.subject})
        seq = page.next_seq
    return named


def _digests(data: bytes) -> set[bytes]:
    try:
        return {bytes.fromhex(digest) for digest in Manifest.decode(data).chunks}
    except Refused:
        log.warning("chunks.manifest-unreadable")
        return set()


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text[:19] + "+00:00")


async def _subjects(nc: Client, wanted: str) -> AsyncIterator[str]:
    """Every subject with a message, page by page as the server gives them."""
    offset, total = 0, 1
    while offset < total:
        ask: dict[str, Any] = {"subjects_filter": wanted, "offset": offset}
        said = await call(nc, f"STREAM.INFO.{subjects.CHUNKS}", ask)
        found = said["state"].get("subjects") or {}
        for subject in found:
            yield subject
        total = int(said.get("total", 0))
        offset += max(len(found), 1)
