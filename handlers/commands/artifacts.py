"""``artifact.collect``: let go of root file systems that no template and no snapshot owns (reference/cubesandbox.md §3.7)."""

from __future__ import annotations

from bus.endpoints import Reply
from domain.templates.commands import ArtifactCollect
from handlers.control import Control
from handlers.dispatch import Asked
from handlers.processes import collection


async def collect(control: Control, asked: Asked, command: ArtifactCollect) -> Reply:
    """Ask every artifact that may go to go; one that gets an owner meanwhile refuses. With ``dry_run`` only tell."""
    deleted, kept = await collection.collect(control, asked.command_id, dry_run=command.dry_run)
    return Reply({"deleted": deleted, "kept": kept}, None, control.fleet.seq)
