"""``artifact.*``: let go of root file systems that nobody owns, and say where their bytes are (reference/cubesandbox.md §3.7-8)."""

from __future__ import annotations

from bus.endpoints import Reply
from domain.kernel.errors import Refused, not_found
from domain.kernel.ids import SYSTEM_PROJECT
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.commands import ArtifactCollect, ArtifactLink, ArtifactLinked
from handlers.control import Control
from handlers.dispatch import Asked
from handlers.processes import collection


async def collect(control: Control, asked: Asked, command: ArtifactCollect) -> Reply:
    """Ask every artifact that may go to go; one that gets an owner meanwhile refuses. With ``dry_run`` only tell."""
    deleted, kept = await collection.collect(control, asked.command_id, dry_run=command.dry_run)
    return Reply({"deleted": deleted, "kept": kept}, None, control.fleet.seq)


async def link(control: Control, asked: Asked, command: ArtifactLink) -> Reply:
    """Address and token. Artifacts are shared between projects: only one that owns it gets its bytes."""
    if control.links is None:
        raise Refused("artifact.not-served", "this control plane serves no downloads: start it with --artifacts-port")
    artifact = await control.get(Artifact, SYSTEM_PROJECT, command.artifact_id)
    if artifact.state is ArtifactState.DELETED:
        raise not_found("artifact", artifact.id)
    if not any(owner.startswith(f"{asked.project}/") for owner in artifact.owners):
        raise Refused("artifact.not-owned", f"no template and no snapshot of this project has {artifact.id}")
    ref = artifact.ref
    if ref is None:
        building = artifact.state is ArtifactState.BUILDING
        raise Refused("artifact.not-ready", f"artifact {artifact.id} is {artifact.state.value}", retryable=building)
    until = control.deadline(command.ttl_s)
    linked = ArtifactLinked(
        artifact_id=ref.artifact_id,
        url=control.links.url(ref.artifact_id),
        token=control.links.token(ref, until),
        expires_at=until,
        sha256=ref.sha256,
        size_bytes=ref.size_bytes,
    )
    return Reply(linked.model_dump(mode="json"), ref.artifact_id, control.fleet.seq)
