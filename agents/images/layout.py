"""OCI image layouts: as a folder, or inside a tar archive. Blobs are used where they lie; only their digests are computed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents.images.blocking import Stop
from agents.images.faults import ImageFault
from agents.images.manifest import MAX_MANIFEST, Descriptor, parse_index
from agents.images.reference import ArchiveRef, LayoutRef
from agents.images.source import Blob, Seen, checked, mismatch, open_regular
from agents.images.tarstream import forget

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_MAX_MEMBERS: Final = 100_000
_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")

Locate = Callable[[str], Blob]
"""Where a file of the layout lies, by its name in the layout; its digest is not known yet. Raises ``image.not-found``."""


class Layout:
    """A source whose files something else locates."""

    def __init__(self, locate: Locate, tag: str | None, stop: Stop) -> None:
        self._locate = locate
        self._tag = tag
        self._stop = stop

    def root(self) -> tuple[bytes, str]:
        index = parse_index(_read(self._locate("index.json")))
        named = [item for item in index.manifests if self._tag is None or item.annotations.get(_REF_NAME) == self._tag]
        if self._tag is None and len(named) > 1:  # no tag means the only image, or the one called latest
            named = [item for item in named if item.annotations.get(_REF_NAME) == "latest"] or named
        if not named:
            raise ImageFault("image.not-found", f"the layout has no image tagged {self._tag!r}" if self._tag else "the layout is empty")
        if len({item.digest for item in named}) > 1:
            raise ImageFault("image.ambiguous", f"the layout has {len(named)} images: say which tag")
        return self.manifest(named[0].digest), named[0].media_type

    def manifest(self, digest: str) -> bytes:
        return checked(_read(self._blob(digest)), digest)

    def fetch(self, blob: Descriptor, folder: Path, seen: Seen) -> Blob:  # noqa: ARG002 - nothing is copied, so no folder is used
        found = self._blob(blob.digest)
        if found.size != blob.size:
            raise mismatch(blob.digest)
        for chunk in found.chunks(self._stop):
            seen(len(chunk))
        return found

    def _blob(self, digest: str) -> Blob:
        return replace(self._locate("blobs/" + digest.replace(":", "/", 1)), digest=digest)


def open_layout(ref: LayoutRef | ArchiveRef, stop: Stop) -> Layout:
    """Raises ``image.not-found``, ``image.bad-manifest`` (an archive that is none)."""
    locate = _in_folder(ref.path) if isinstance(ref, LayoutRef) else _in_archive(ref.path, stop)
    return Layout(locate, ref.tag, stop)


def _in_folder(folder: Path) -> Locate:
    def locate(name: str) -> Blob:
        path = folder / name
        fd = open_regular(path)
        try:
            return Blob(path, 0, os.fstat(fd).st_size, digest="")
        finally:
            os.close(fd)

    if not folder.is_dir():
        raise ImageFault("image.not-found", f"there is no OCI layout folder {folder}")
    return locate


def _in_archive(path: Path, stop: Stop) -> Locate:
    """Read the table of contents once; members of a plain tar can then be read in place."""
    places: dict[str, tuple[int, int]] = {}
    with os.fdopen(open_regular(path), "rb") as file:
        if file.read(8).startswith(_COMPRESSED):
            raise ImageFault("image.bad-manifest", f"{path.name} is compressed; decompress it: layers are read in place")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    stop.check()
                    forget(tar)
                    if member.isreg() and not member.issparse():
                        places[member.name.removeprefix("./")] = (member.offset_data, member.size)
                    if len(places) > _MAX_MEMBERS:
                        raise ImageFault("image.too-large", f"{path.name} has more than {_MAX_MEMBERS} members")
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise ImageFault("image.bad-manifest", f"{path.name} is no tar archive: {error}") from error

    def locate(name: str) -> Blob:
        if name not in places:
            raise ImageFault("image.not-found", f"the archive has no {name}")
        offset, size = places[name]
        return Blob(path, offset, size, digest="")

    return locate


def _read(blob: Blob) -> bytes:
    """A whole small file. Raises ``image.too-large``."""
    if blob.size > MAX_MANIFEST:
        raise ImageFault("image.too-large", f"{blob.path.name} has {blob.size} bytes where a manifest should be")
    with os.fdopen(open_regular(blob.path), "rb") as file:
        file.seek(blob.offset)
        return file.read(blob.size)
