"""Whether an artifact's bytes are where the log says, and what follows when they are not (reference/cubesandbox.md §3.6)."""

from __future__ import annotations

from typing import Final

from bus import objects
from bus.subjects import ARTIFACTS_BUCKET
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Failure
from domain.templates.artifact import Artifact
from domain.templates.job import Job
from domain.templates.replica import Replica
from handlers.control import Control

BAD: Final = frozenset({"object.corrupt", "object.not-found"})
"""What a node says that finds an artifact's bytes wrong or missing; its details name the digest that it wanted."""
MAX_LOSSES: Final = 2
"""How often one job builds its artifact anew because a node found the bytes bad: whatever spoils them then spoils them again."""


async def usable(control: Control, artifact: Artifact) -> bool:
    """May it be used again? When its bytes are not in the store the artifact is lost, and to be built anew. Whoever reads verifies them."""
    ref = artifact.ref
    if ref is not None and await objects.present(control.nc, ARTIFACTS_BUCKET, artifact.id, ref.sha256, ref.size_bytes):
        return True
    await _lose(control, artifact)
    return False


async def found_bad(control: Control, project: str, replica: Replica, failure: Failure) -> bool:
    """A node could not fetch a replica's artifact. True when the artifact, not the node, is the reason: it is made anew, the replica waits.

    The node's word is a claim: every stored byte is read before bytes are thrown away that perhaps nobody can build again.
    """
    job = await control.find(Job, project, replica.job_id)
    if failure.code not in BAD or replica.artifact_id is None or job is None or not job.active:
        return False
    artifact = await control.get(Artifact, SYSTEM_PROJECT, replica.artifact_id)
    wanted = failure.details.get("sha256")
    if wanted is None or wanted != artifact.sha256:
        return wanted is not None  # another node was first
    losses = int(job.facts.get("losses", 0))
    if losses >= MAX_LOSSES or await _intact(control, artifact):
        return False
    cause = control.own_cause(project, "job", job.id, "loss", artifact.generation)
    await control.change(Job, project, job.id, cause, lambda j: j.note(cause.at, losses=losses + 1))
    await _lose(control, artifact)
    return True


async def _intact(control: Control, artifact: Artifact) -> bool:
    ref = artifact.ref
    if ref is None or not await objects.present(control.nc, ARTIFACTS_BUCKET, artifact.id, ref.sha256, ref.size_bytes):
        return False
    return await objects.check(control.nc, ARTIFACTS_BUCKET, artifact.id, ref.sha256)


async def _lose(control: Control, artifact: Artifact) -> None:
    """What is left of the bytes goes first: a build that gives the same ones must not find them stored already."""
    await objects.delete(control.nc, ARTIFACTS_BUCKET, artifact.id)
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "lost", artifact.generation)
    await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.lost(cause.at, artifact.sha256))
