"""Manifests: which blobs an image is made of, OCI and Docker v2 schema 2, and which image of an index is for this machine.

Parsing is tolerant of unknown fields (both specifications demand it) and strict about the ones that matter.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from agents.images.faults import ImageFault
from agents.images.options import BuildLimits

MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Bytes; the limit that registries themselves have for a manifest. Image configurations are held to it as well."""

INDEX_TYPES: Final = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES: Final = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_LAYER_TYPES: Final = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
_CONFIG_TYPES: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_ARCHITECTURES: Final[Mapping[str, str]] = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
M = TypeVar("M", bound=BaseModel)


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


class Platform(Wire):
    os: str = ""
    architecture: str = ""


class Descriptor(Wire):
    """A blob: what it is, which bytes it has, and how many."""

    media_type: str = ""
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    platform: Platform | None = None
    annotations: dict[str, str] = {}


class Index(Wire):
    """An index or manifest list. It says of itself what it is, or the place that it was found in does."""

    media_type: str = ""
    manifests: Annotated[tuple[Descriptor, ...], Field(max_length=4096)]


class Manifest(Wire):
    media_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]


class RootFs(BaseModel):
    diff_ids: tuple[Digest, ...]


class ImageConfig(BaseModel):
    """The image configuration: how to run it, and the digests of its layers when unpacked."""

    architecture: str = ""
    os: str = ""
    created: str | None = None
    config: dict[str, Any] | None = None
    rootfs: RootFs


@dataclass(frozen=True, slots=True)
class Image:
    """A resolved image: its manifest's digest, its layers bottom first with their unpacked digests, and its configuration."""

    digest: str
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    config: dict[str, Any]
    epoch: int
    """``created`` in seconds since 1970, 0 if unknown: the image's own idea of "now", which keeps builds reproducible."""
    size_bytes: int
    """Of the compressed layers and the configuration."""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def this_platform() -> Platform:
    machine = platform.machine().lower()
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def _parse(model: type[M], data: bytes, what: str) -> M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImageFault("image.bad-manifest", f"the {what} is malformed at {where or 'its start'}: {first['msg']}") from None


def parse_index(data: bytes) -> Index:
    return _parse(Index, data, "image index")


def kind_of(data: bytes, media_type: str = "") -> str:
    """The media type that a manifest's bytes claim; what the transport said only decides where they are silent."""
    claimed = _parse(_Kind, data, "manifest")
    if claimed.schema_version == 1:
        raise ImageFault(
            "image.unsupported-manifest", "Docker schema 1 manifests are not supported: push the image again with a current tool"
        )
    if claimed.media_type:
        return claimed.media_type
    if media_type in INDEX_TYPES or claimed.manifests is not None:
        return INDEX_TYPES[0]
    return media_type if media_type in MANIFEST_TYPES else MANIFEST_TYPES[0]


class _Kind(Wire):
    schema_version: int = 2
    media_type: str = ""
    manifests: list[Any] | None = None


def choose(index: Index, wanted: Platform) -> Descriptor:
    """The manifest for a platform. A lone image that says nothing of its platform is taken: its configuration will be checked."""
    images = [item for item in index.manifests if item.media_type in (*INDEX_TYPES, *MANIFEST_TYPES, "")]
    for item in images:
        if item.platform and (item.platform.os, item.platform.architecture) == (wanted.os, wanted.architecture):
            return item
    silent = [item for item in images if item.platform is None]
    if len(silent) == 1 and len(images) == 1:
        return silent[0]
    offered = sorted({f"{item.platform.os}/{item.platform.architecture}" for item in images if item.platform})
    raise ImageFault(
        "image.wrong-platform", f"the image has no {wanted.os}/{wanted.architecture} variant, only {', '.join(offered[:20]) or 'none'}"
    )


def parse_manifest(data: bytes, limits: BuildLimits) -> Manifest:
    """Raises ``image.bad-manifest``, ``image.unsupported-manifest`` (nothing to run), ``image.unsupported-layer``, ``image.too-large``."""
    manifest = _parse(Manifest, data, "manifest")
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise ImageFault("image.unsupported-manifest", f"this is no container image but {manifest.config.media_type[:100]!r}")
    for layer in manifest.layers:
        bare = layer.media_type.removesuffix("+gzip").removesuffix("+zstd").removesuffix(".gzip")
        if bare not in _LAYER_TYPES:
            raise ImageFault("image.unsupported-layer", f"layers of type {layer.media_type[:100]!r} are not supported")
    if len(manifest.layers) > limits.max_layers:
        raise ImageFault("image.too-large", f"the image has {len(manifest.layers)} layers; {limits.max_layers} are allowed")
    if (packed := sum(layer.size for layer in manifest.layers)) > limits.max_compressed_bytes:
        raise ImageFault("image.too-large", f"the image's layers have {packed} bytes; {limits.max_compressed_bytes} are allowed")
    return manifest


def parse_config(digest: str, manifest: Manifest, data: bytes, wanted: Platform) -> Image:
    """Join manifest and configuration. Raises ``image.bad-manifest``, ``image.wrong-platform``."""
    config = _parse(ImageConfig, data, "image configuration")
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ImageFault(
            "image.bad-manifest", f"the manifest has {len(manifest.layers)} layers, its configuration {len(config.rootfs.diff_ids)}"
        )
    if (config.os, config.architecture) != (wanted.os, wanted.architecture):
        raise ImageFault(
            "image.wrong-platform",
            f"the image is for {config.os}/{config.architecture}, this machine is {wanted.os}/{wanted.architecture}",
        )
    return Image(
        digest=digest,
        layers=manifest.layers,
        diff_ids=config.rootfs.diff_ids,
        config=config.config or {},
        epoch=_epoch(config.created),
        size_bytes=manifest.config.size + sum(layer.size for layer in manifest.layers),
    )


def _epoch(created: str | None) -> int:
    """Seconds; 0 for Go's zero time and other nonsense. Kept within 31 bits because that is what every ext4 tool takes."""
    try:
        moment = datetime.fromisoformat(created or "")
    except ValueError:
        return 0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(int(moment.timestamp()), 0), 2**31 - 1)
