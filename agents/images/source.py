"""The port behind which images lie: a layout folder, an archive, a registry.

A source gives manifests as bytes, and blobs as files whose digest has been checked.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agents.host.syscalls import punch
from agents.images.blocking import Stop
from agents.images.faults import ImageFault, host_fault
from agents.images.manifest import (
    INDEX_TYPES,
    MAX_MANIFEST,
    Descriptor,
    Image,
    choose,
    digest_of,
    kind_of,
    parse_config,
    parse_index,
    parse_manifest,
    this_platform,
)
from agents.images.options import BuildLimits

CHUNK: Final = 256 * 1024
_MAX_NESTING: Final = 3
_SPENT: Final = 16 * CHUNK
"""How often a file gives back what has been read of it."""

Seen = Callable[[int], None]
"""Told the number of bytes that have come since the last call; negative when a download begins anew."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob's bytes: ``size`` of them at ``offset`` in a file. ``temporary``: the file is ours and goes when the blob was used."""

    path: Path
    offset: int
    size: int
    digest: str
    temporary: bool = False

    def chunks(self, stop: Stop, *, spend: bool = False) -> Iterator[bytes]:
        """The bytes, digested on the way; after the last one raises ``image.digest-mismatch`` when they are not what they should be.

        ``spend``: they are not read again, so that a file of ours gives back what has been read, where its file system can do that.
        """
        hasher = hashlib.sha256()
        with os.fdopen(open_regular(self.path, os.O_RDWR if spend and self.temporary else os.O_RDONLY), "rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.size
            while left and (chunk := file.read(min(CHUNK, left))):
                stop.check()
                left -= len(chunk)
                hasher.update(chunk)
                yield chunk
                if spend and self.temporary and (self.size - left) % _SPENT < CHUNK:
                    with suppress(OSError):
                        punch(file.fileno(), self.size - left)
        if left or f"sha256:{hasher.hexdigest()}" != self.digest:
            raise mismatch(self.digest)

    def discard(self) -> None:
        if self.temporary:
            self.path.unlink(missing_ok=True)


class Source(Protocol):
    """Raises ``ImageFault`` throughout; ``Stopped`` when told to stop. Calls may come from several threads."""

    def root(self) -> tuple[bytes, str]:
        """The manifest or index that the reference means, and the media type that the transport claims for it."""
        ...

    def manifest(self, digest: str) -> bytes:
        """The manifest or index with that digest, checked."""
        ...

    def fetch(self, blob: Descriptor, folder: Path, seen: Seen) -> Blob:
        """Have a blob's checked bytes in a file: one of ``folder``, or where they lie anyway."""
        ...


def open_regular(path: Path, access: int = os.O_RDONLY) -> int:
    """A descriptor on a regular file: a FIFO in a layout must not block the agent, nor a link lead elsewhere."""
    try:
        fd = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageFault("image.not-found", f"there is no {path.name}") from None
    except OSError as error:
        raise host_fault(error, f"opening {path.name}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageFault("image.bad-manifest", f"{path.name} is not a regular file")
    return fd


def mismatch(digest: str) -> ImageFault:
    return ImageFault("image.digest-mismatch", f"the bytes of {digest} are not what it names")


def checked(data: bytes, digest: str) -> bytes:
    if digest_of(data) != digest:
        raise mismatch(digest)
    return data


def read_image(source: Source, digest: str | None, folder: Path, limits: BuildLimits) -> Image:
    """From a reference to a runnable image for this machine; ``digest`` pins the manifest (or index) whatever the tag says now."""
    wanted = this_platform()
    data, media_type = (source.manifest(digest), "") if digest else source.root()
    for _ in range(_MAX_NESTING):
        if kind_of(data, media_type) not in INDEX_TYPES:
            break
        data, media_type = source.manifest(choose(parse_index(data), wanted).digest), ""
    else:
        raise ImageFault("image.bad-manifest", f"indexes are nested more than {_MAX_NESTING - 1} deep")
    manifest = parse_manifest(data, limits)
    if manifest.config.size > MAX_MANIFEST:
        raise ImageFault("image.too-large", f"the image configuration has {manifest.config.size} bytes; {MAX_MANIFEST} are allowed")
    blob = source.fetch(manifest.config, folder, lambda _count: None)
    try:
        config = b"".join(blob.chunks(Stop()))
    finally:
        blob.discard()
    return parse_config(digest_of(data), manifest, config, wanted)
