"""A real builder for a node without a bus, an object store that remembers digests alone, and that nothing is left of a build."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agents import images
from agents.builder import Builder, Shelf
from domain.kernel.ids import artifact_id
from domain.templates.fingerprint import ArtifactSpec, fingerprint


def building(rig: Any, stored: dict[str, str]) -> None:
    """Give the rig's node a real builder, and an object store that is ``stored``: digests by artifact."""

    async def stat(identifier: str) -> Any:
        return SimpleNamespace(sha256=stored[identifier], size=1) if identifier in stored else None

    async def put(identifier: str, path: Path, sha256: str) -> None:
        del path
        stored[identifier] = sha256

    async def check(identifier: str, sha256: str) -> bool:
        return stored[identifier] == sha256

    shelf = Shelf(stat, put, check)
    own = rig.directory
    rig.node.images = Builder(own / "build", rig.node.cache, shelf, own, (own,), key=None, trust=images.Trust())
    rig.node.images.clean()


def identifier(digest: str) -> str:
    return artifact_id(fingerprint(ArtifactSpec(image_digest=digest, disk_mb=64)))


async def leaves_nothing(rig: Any) -> None:
    there = await rig.node.roots.list()
    assert not [name for name in (*there.roots, *there.snapshots) if name.startswith("commit-")]
    assert not [*(rig.directory / "build").iterdir()]
