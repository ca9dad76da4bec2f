"""``artifact.collect``: let go of root file systems that no template and no snapshot owns (reference/cubesandbox.md §3.7)."""

from __future__ import annotations

from bus.endpoints import Reply
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.templates.artifact import Artifact
from domain.templates.commands import ArtifactCollect
from handlers.control import Control
from handlers.dispatch import Asked


async def collect(control: Control, asked: Asked, command: ArtifactCollect) -> Reply:
    """Ask every artifact that may go to go; one that gets an owner meanwhile refuses. With ``dry_run`` only tell."""
    deleted: list[str] = []
    kept = 0
    for identifier in sorted(control.fleet.artifacts):
        artifact = await control.get(Artifact, SYSTEM_PROJECT, identifier)
        going = artifact.collectable(asked.cause.at)
        if going and not command.dry_run:
            going = await _let_go(control, asked, identifier)
        if going:
            deleted.append(identifier)
        else:
            kept += 1
    return Reply({"deleted": deleted, "kept": kept}, None, control.fleet.seq)


async def _let_go(control: Control, asked: Asked, identifier: str) -> bool:
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", identifier, "collect", asked.command_id)
    try:
        await control.change(Artifact, SYSTEM_PROJECT, identifier, cause, lambda a: a.request_cleanup(cause.at))
    except Refused:
        return False
    return True
