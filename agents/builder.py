"""Building artifacts: from an image to verified bytes in the object store, and in this node's own cache.

What is stored already is not built again: a note beside the cache says what this node has built, the store says whether its bytes are
still there. Another node's build is taken over with the image's configuration read anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from agents import images
from agents.cache import Cache
from agents.failures import fail
from agents.sealing import SealingKey
from domain.kernel.ids import artifact_id
from domain.nodes.orders import ArtifactBuild, ArtifactBuilt, BuildProgress, ImageResolve, ImageResolved, SandboxCommitted
from domain.templates.fingerprint import ArtifactSpec, fingerprint
from domain.templates.image_ref import parse_image

log = structlog.get_logger(__name__)

EGRESS_CA_FILE: Final = "egress-ca.pem"


class Stored(Protocol):
    """What the object store says of an artifact."""

    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Shelf:
    """The object store's bucket of artifacts: ``stat`` by id, ``put`` a file of known digest, ``check`` that all bytes are there."""

    stat: Callable[[str], Awaitable[Stored | None]]
    put: Callable[[str, Path, str], Awaitable[Any]]
    check: Callable[[str, str], Awaitable[bool]]


class Builder:
    """``work``: where builds happen, emptied at the start; ``base``: what relative image folders are relative to; ``key`` opens secrets.

    ``trust``: which registries are believed.
    """

    def __init__(
        self,
        work: Path,
        cache: Cache,
        shelf: Shelf,
        base: Path,
        directories: tuple[Path, ...],
        key: SealingKey,
        trust: images.Trust,
    ) -> None:
        self._work = work
        self._cache = cache
        self._shelf = shelf
        self._base = base
        self._directories = directories
        self._key = key
        self._trust = trust

    def clean(self) -> None:
        """Remove what builds of an earlier process left."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700, parents=True)

    async def resolve(self, body: ImageResolve) -> ImageResolved:
        """Raises ``ImageFault``, ``egress-ca.missing``, ``registry.secret-unreadable``."""
        baked = images.fingerprint(await asyncio.to_thread(self._certificate)) if body.egress_ca else ""
        found = await images.resolve(body.image, self._auth(body), base=self._base, trust=self._trust)
        return ImageResolved(digest=found.digest, size_bytes=found.size_bytes, layers=found.layers, config=found.config, egress_ca=baked)

    async def build(self, body: ArtifactBuild, order_id: str, tell: Callable[[BuildProgress], None]) -> ArtifactBuilt:
        """Raises ``ImageFault``, ``Refused`` of the bus, ``egress-ca.missing``, ``egress-ca.changed``, ``registry.secret-unreadable``.

        And ``template.origin-gone`` for a committed one that is neither stored nor here.
        """
        if body.committed:
            return await self._store_committed(body.artifact_id)
        known = await self._stored(body)
        if known is not None:
            log.info("build.reused", artifact=body.artifact_id)
            return known
        certificate = await asyncio.to_thread(self._certificate, body.egress_ca_sha256) if body.egress_ca else None
        async with self._place(order_id) as work:
            file = work / "rootfs.ext4"
            built = await images.build(
                body.image,
                body.digest,
                body.disk_mb,
                work,
                file,
                self._auth(body),
                tell,
                base=self._base,
                egress_ca=certificate,
                trust=self._trust,
            )
            await self._shelf.put(body.artifact_id, file, built.sha256)
            await self._cache.adopt(body.artifact_id, file, built.sha256)  # last: what is cut off leaves no copy that nobody knows of
        result = ArtifactBuilt(sha256=built.sha256, size_bytes=built.size_bytes, image_config=built.image_config)
        self._cache.note(body.artifact_id).write_text(result.model_dump_json())
        return result

    async def pack(self, root: Path, disk_mb: int, order_id: str, tell: Callable[[BuildProgress], None]) -> SandboxCommitted:
        """Make a file of a sandbox's root directory, and keep it in the cache under the id that follows. Raises ``ImageFault``.

        ``root`` may be such a file already, which is moved.
        """
        async with self._place(order_id) as work:
            if await asyncio.to_thread(root.is_dir):
                packed = await images.pack(root, disk_mb, work, work / "rootfs.ext4", tell)
            else:
                packed = await asyncio.to_thread(_taken, root, work / "rootfs.ext4")
            identifier = artifact_id(fingerprint(ArtifactSpec(image_digest=packed.digest, disk_mb=disk_mb)))
            await self._cache.adopt(identifier, work / "rootfs.ext4", packed.sha256)
        return SandboxCommitted(digest=packed.digest, sha256=packed.sha256, size_bytes=packed.size_bytes)

    @contextlib.asynccontextmanager
    async def _place(self, order_id: str) -> AsyncIterator[Path]:
        """A folder for one build, removed at the end. Once the build is done nothing is waited for: it cannot be cut off any more."""
        work = self._work / order_id
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            yield work
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)  # as good as empty

    async def _store_committed(self, identifier: str) -> ArtifactBuilt:
        stat = await self._shelf.stat(identifier)
        if stat is not None and await self._shelf.check(identifier, stat.sha256):
            return ArtifactBuilt(sha256=stat.sha256, size_bytes=stat.size)
        held = await self._cache.held(identifier)
        if held is None:
            raise fail("template.origin-gone", f"this node has no copy of {identifier} any more", artifact=identifier)
        await self._shelf.put(identifier, self._cache.path(identifier), held.sha256)
        return ArtifactBuilt(sha256=held.sha256, size_bytes=held.size_bytes)

    async def _stored(self, body: ArtifactBuild) -> ArtifactBuilt | None:
        """What a build would give, if every byte of it is in the store."""
        stat = await self._shelf.stat(body.artifact_id)
        if stat is None or not await self._shelf.check(body.artifact_id, stat.sha256):
            return None
        with contextlib.suppress(OSError, ValueError):
            noted = ArtifactBuilt.model_validate_json(await asyncio.to_thread(self._cache.note(body.artifact_id).read_text))
            if (noted.sha256, noted.size_bytes) == (stat.sha256, stat.size):
                return noted
        found = await images.resolve(body.image, self._auth(body), base=self._base, trust=self._trust)
        if found.digest != body.digest:
            return None
        return ArtifactBuilt(sha256=stat.sha256, size_bytes=stat.size, image_config=found.config)

    def _certificate(self, wanted: str = "") -> bytes:
        """The egress CA of this node. ``wanted``: its fingerprint, if it must be a certain one (reference/cubesandbox.md §3.8)."""
        for directory in self._directories:
            with contextlib.suppress(OSError):
                found = (directory / EGRESS_CA_FILE).read_bytes()
                if wanted and images.fingerprint(found) != wanted:
                    raise fail("egress-ca.changed", f"{EGRESS_CA_FILE} is another one by now")
                return found
        raise fail("egress-ca.missing", f"no {EGRESS_CA_FILE} on this node to bake in")

    def _auth(self, body: ImageResolve | ArtifactBuild) -> images.Auth | None:
        """The one place where the secret is in clear: it lives as long as the pull, and is neither kept nor logged."""
        if body.registry_user is None or body.registry_secret is None:
            return None
        return images.Auth(body.registry_user, self._key.open(body.registry_secret, parse_image(body.image).host))


def _taken(file: Path, out: Path) -> images.Packed:
    """A file system that somebody else made, as it is."""
    shutil.move(file, out)
    with out.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    return images.Packed(f"sha256:{digest}", digest, out.stat().st_size)
