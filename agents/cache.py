"""The node's own copies of artifacts: fetched once, verified, and verified again when a replica is distributed.

``<id>.ext4`` is the file, ``<id>.json`` what it was when it was verified. A file whose size or time of change is another than then is
not believed and fetched again (reference/cubesandbox.md §3.6: reuse verifies that the bytes exist and match).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from agents.keyed import KeyedLocks
from domain.sandboxes.spec import ArtifactRef

log = structlog.get_logger(__name__)

Fetch = Callable[[str, Path, str], Awaitable[Any]]
"""(artifact id, where to, sha256): from the object store; the path appears when all bytes are there and right."""

_PIECE: Final = 4 << 20


class Cache:
    """Artifacts below one directory. Several callers for the same artifact wait for one fetch."""

    def __init__(self, directory: Path, fetch: Fetch) -> None:
        self._directory = directory
        self._fetch = fetch
        self._lock = KeyedLocks()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, artifact_id: str) -> Path:
        return self._directory / f"{artifact_id}.ext4"

    def note(self, artifact_id: str) -> Path:
        """Where a builder notes what else it knows of the artifact."""
        return self._directory / f"{artifact_id}.built"

    def _proof(self, artifact_id: str) -> Path:
        return self._directory / f"{artifact_id}.json"

    async def ensure(self, ref: ArtifactRef, *, thoroughly: bool = False) -> Path:
        """The file with exactly these bytes. ``thoroughly``: read all of it rather than believe its size and time.

        Raises ``Refused`` (``object.not-found``, ``object.corrupt``, ``bus.unavailable``).
        """
        async with self._lock(ref.artifact_id):
            path = self.path(ref.artifact_id)
            if self._known(ref) and (not thoroughly or await asyncio.to_thread(_sha256, path) == ref.sha256):
                return path
            await asyncio.to_thread(self._drop, ref.artifact_id)
            await self._fetch(ref.artifact_id, path, ref.sha256)
            self._vouch(ref.artifact_id, ref.sha256)
            return path

    def _known(self, ref: ArtifactRef) -> bool:
        path = self.path(ref.artifact_id)
        with contextlib.suppress(OSError, ValueError):
            said = orjson.loads(self._proof(ref.artifact_id).read_bytes())
            if said == {**_identity(path), "sha256": ref.sha256}:
                return True
            log.warning("cache.damaged", artifact=ref.artifact_id)
        return False

    def _vouch(self, artifact_id: str, sha256: str) -> None:
        proof = self._proof(artifact_id)
        temporary = proof.with_suffix(".new")
        temporary.write_bytes(orjson.dumps({**_identity(self.path(artifact_id)), "sha256": sha256}))
        temporary.replace(proof)

    async def adopt(self, artifact_id: str, file: Path, sha256: str) -> Path:
        """Take a file that was just built here, and is known to be right, from its place on the same file system.

        Whoever is cancelled here has given it away or has it still: a rename needs no thread, and is in one piece with its proof.
        """
        async with self._lock(artifact_id):
            return self._take(artifact_id, file, sha256)

    def _take(self, artifact_id: str, file: Path, sha256: str) -> Path:
        path = self.path(artifact_id)
        file.replace(path)
        self._vouch(artifact_id, sha256)
        return path

    async def held(self, artifact_id: str) -> ArtifactRef | None:
        """What is here under this id, every byte of it read and as it was when it was made; None when nothing is."""
        async with self._lock(artifact_id):
            path = self.path(artifact_id)
            with contextlib.suppress(OSError, ValueError, KeyError):
                sha256 = orjson.loads(self._proof(artifact_id).read_bytes())["sha256"]
                if await asyncio.to_thread(_sha256, path) == sha256:
                    return ArtifactRef(artifact_id=artifact_id, sha256=sha256, size_bytes=path.stat().st_size)
            return None

    async def remove(self, artifact_id: str) -> None:
        async with self._lock(artifact_id):
            await asyncio.to_thread(self._drop, artifact_id)
            self.note(artifact_id).unlink(missing_ok=True)

    def _drop(self, artifact_id: str) -> None:
        """The proof first: a file without one is never believed."""
        self._proof(artifact_id).unlink(missing_ok=True)
        self.path(artifact_id).unlink(missing_ok=True)

    def artifacts(self) -> frozenset[str]:
        """Ids of what is here, believed or not."""
        return frozenset(path.stem for path in self._directory.glob("rfs-*.ext4"))

    def copies(self) -> Iterator[tuple[str, float]]:
        """Ids of what is here, and when each was last changed: seconds since the epoch."""
        for artifact_id in sorted(self.artifacts()):
            with contextlib.suppress(FileNotFoundError):
                yield artifact_id, self.path(artifact_id).stat().st_mtime


def _identity(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
