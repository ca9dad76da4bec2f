"""Writes OCI image layouts: blobs, configurations, manifests, and the index with its tags. Equal input gives equal bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agents.images.manifest import digest_of, this_platform

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"


class LayerTar:
    """One layer as a tar archive, filled entry by entry. Names are relative; parents are to be added by whoever wants them."""

    def __init__(self, mtime: int = 0) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by ``bytes``
        self._mtime = mtime

    def entry(self, name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any) -> None:
        """Any entry; ``fields`` are those of ``tarfile.TarInfo`` (``mode``, ``uid``, ``linkname``, ``pax_headers`` ...)."""
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mtime = kind, len(content), self._mtime
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(content))

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.entry(name, content=content, mode=mode)

    def directory(self, name: str, mode: int = 0o755) -> None:
        self.entry(name, tarfile.DIRTYPE, mode=mode)

    def symlink(self, name: str, target: str) -> None:
        self.entry(name, tarfile.SYMTYPE, linkname=target, mode=0o777)

    def hardlink(self, name: str, target: str) -> None:
        self.entry(name, tarfile.LNKTYPE, linkname=target)

    def whiteout(self, name: str) -> None:
        """Hide what lower layers have at ``name``."""
        folder, slash, last = name.rpartition("/")
        self.entry(f"{folder}{slash}.wh.{last}")

    def bytes(self) -> bytes:
        """The finished archive; nothing can be added any more."""
        self._tar.close()
        return self._buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer as it lies in an image: packed bytes, their media type, the digest of the unpacked ones."""

    data: bytes
    media_type: str
    diff_id: str


def packed(tar: bytes) -> Packed:
    """Gzip, without name and time in its header."""
    return Packed(gzip.compress(tar, 6, mtime=0), f"{_LAYER}+gzip", digest_of(tar))


def plain(tar: bytes) -> Packed:
    return Packed(tar, _LAYER, digest_of(tar))


class LayoutWriter:
    """An OCI image layout folder, new or added to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Store bytes; their descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self._folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def image(
        self, layers: Sequence[Packed], config: Mapping[str, Any], tag: str, *, created: str = "1970-01-01T00:00:00Z", **platform: str
    ) -> str:
        """Store an image for this machine (or ``os=``, ``architecture=``) and tag it: its manifest's digest."""
        here = {**this_platform().model_dump(), **platform}
        body = {
            "created": created,
            **here,
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self.blob(_json(body), _CONFIG),
            "layers": [self.blob(layer.data, layer.media_type) for layer in layers],
        }
        entry = {**self.blob(_json(manifest), _MANIFEST), "platform": here}
        self.tag(entry, tag)
        return str(entry["digest"])

    def tag(self, descriptor: Mapping[str, Any], tag: str) -> None:
        """Make ``tag`` mean a manifest or index."""
        path = self._folder / "index.json"
        old = json.loads(path.read_bytes())["manifests"] if path.exists() else []
        name = "org.opencontainers.image.ref.name"
        kept = [item for item in old if item.get("annotations", {}).get(name) != tag]
        path.write_bytes(_json({"schemaVersion": 2, "manifests": [*kept, {**descriptor, "annotations": {name: tag}}]}))


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
