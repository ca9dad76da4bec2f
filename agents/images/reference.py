"""Image references: an OCI layout folder, an OCI archive, or a repository in a registry.

``oci:folder[:tag]`` · ``oci-archive:file[:tag]`` · ``[docker://]host[:port]/name[:tag][@sha256:…]``. Without a host the name is Docker
Hub's, as everywhere (reference/cubesandbox.md §3.1 settles the alphabet).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from agents.images.faults import ImageFault

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REMOTE: Final = re.compile(r"(?!-)[A-Za-z0-9._:/@-]{1,512}")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::[0-9]{1,5})?")
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HUB: Final = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class LayoutRef:
    """An OCI image layout: a folder with ``index.json`` and ``blobs/``."""

    path: Path
    tag: str | None


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """A tar file of an OCI image layout, not compressed."""

    path: Path
    tag: str | None


@dataclass(frozen=True, slots=True)
class RemoteRef:
    """A repository of a registry, and which of its images. ``digest`` wins over ``tag``."""

    host: str
    repository: str
    tag: str
    digest: str | None


Reference: TypeAlias = LayoutRef | ArchiveRef | RemoteRef


def parse(image: str, base: Path) -> Reference:
    """Raises ``image.bad-reference``. ``base``: what relative paths are relative to."""
    if image.startswith("oci:"):
        return LayoutRef(*_path_and_tag(image, image.removeprefix("oci:"), base))
    if image.startswith("oci-archive:"):
        return ArchiveRef(*_path_and_tag(image, image.removeprefix("oci-archive:"), base))
    return _remote(image)


def _bad(image: str, why: str) -> ImageFault:
    return ImageFault("image.bad-reference", f"{image[:200]!r} is no image reference: {why}")


def _path_and_tag(image: str, rest: str, base: Path) -> tuple[Path, str | None]:
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:  # a colon inside a folder's name is not the tag's
        path, tag = rest, ""
    if not path or "\0" in path:
        raise _bad(image, "it has no path")
    return base / path, tag or None


def _remote(image: str) -> RemoteRef:
    text = image.removeprefix("docker://")
    if not _REMOTE.fullmatch(text):
        raise _bad(image, "only A-Z a-z 0-9 . _ : / @ - may stand in it")
    name, _, digest = text.partition("@")
    if digest and not DIGEST.fullmatch(digest):
        raise _bad(image, "its digest is not sha256:<64 hex digits>")
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "docker.io", name
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(image, "its tag is malformed")
    if host in {"docker.io", "index.docker.io"}:
        host = _HUB
        repository = repository if "/" in repository else f"library/{repository}"
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository):
        raise _bad(image, "its host or repository name is malformed")
    return RemoteRef(host, repository, tag or "latest", digest or None)
