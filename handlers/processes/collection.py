"""The collector of artifacts: what failed, what nobody owns, and what a build left that will never end (reference/cubesandbox.md §3.7).

Every ten minutes, and when a caller asks. What is being cleaned up already is moved on by its own process, which tells the nodes that are
still to remove it again in each round: one on which a sandbox lay over it refuses, and is asked later.
"""

from __future__ import annotations

from typing import Final

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job
from handlers.control import Control

PER_ROUND: Final = 100


async def collect(control: Control, salt: str, *, dry_run: bool = False, most: int | None = None) -> tuple[list[str], int]:
    """The ids of what goes (or would go), at most ``most``, and how many are kept. ``salt`` tells this collection from others."""
    deleted: list[str] = []
    kept = 0
    for identifier in sorted(control.fleet.artifacts):
        artifact = await control.find(Artifact, SYSTEM_PROJECT, identifier)
        if artifact is None or artifact.state is ArtifactState.DELETED:
            continue
        orphaned = await _orphaned(control, artifact)
        going = (most is None or len(deleted) < most) and (artifact.collectable(control.clock()) or (orphaned and not artifact.owners))
        if going and not dry_run:
            going = await _let_go(control, artifact, salt)
        if going:
            deleted.append(identifier)
        else:
            kept += 1
    return deleted, kept


async def _orphaned(control: Control, artifact: Artifact) -> bool:
    """Is it being built for a job that is over? Nobody will ever end that build."""
    if artifact.state is not ArtifactState.BUILDING:
        return False
    job = await control.find(Job, artifact.project, artifact.job_id)
    return job is None or not job.active


async def _let_go(control: Control, artifact: Artifact, salt: str) -> bool:
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "collect", salt)

    def let_go(found: Artifact) -> None:
        if found.generation == artifact.generation:
            found.expire_build(cause.at, artifact.job_id)
        found.request_cleanup(cause.at)

    try:
        await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, let_go)
    except Refused:
        return False
    return True
