"""Artifacts: the root file systems that templates share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Unpack

from domain.templates.commands import ArtifactCollect, ArtifactLink
from strandline.client.call import Call
from strandline.client.items import Artifact
from strandline.client.noun import Noun
from strandline.client.replies import ArtifactLinked, ArtifactsCollected


class Artifacts(Noun):
    """``artifact.*`` and the view ``artifacts``."""

    async def collect(self, *, dry_run: bool = False, **call: Unpack[Call]) -> ArtifactsCollected:
        """Remove artifacts that no template owns any more; with ``dry_run`` only say which."""
        return await self._calls.command(ArtifactCollect, ArtifactsCollected, call, dry_run=dry_run or None)

    async def link(self, artifact_id: str, *, ttl_s: int | None = None, **call: Unpack[Call]) -> ArtifactLinked:
        """Where its bytes are over HTTP, and the token to say there (``Authorization: Bearer …``) for ``ttl_s`` seconds (3600).

        Raises ``artifact.not-served`` where no control plane was started with ``--artifacts-port``.
        """
        return await self._calls.command(ArtifactLink, ArtifactLinked, call, artifact_id=artifact_id, ttl_s=ttl_s)

    async def get(self, artifact_id: str) -> Artifact:
        """One artifact. Raises ``artifact.not-found``."""
        return await self._calls.one("artifacts", Artifact, "artifact", artifact_id)

    def list(self, *, limit: int | None = None, **filters: Any) -> AsyncIterator[Artifact]:
        """Artifacts whose fields equal the filters."""
        return self._calls.each("artifacts", Artifact, filters, limit=limit)
