"""``image-resolve`` and ``artifact-build``: from an image's name to bytes in the object store."""

from __future__ import annotations

from agents.task import Task
from domain.nodes.orders import ArtifactBuild, ArtifactBuilt, ImageResolve, ImageResolved


async def resolve(task: Task, body: ImageResolve) -> ImageResolved:
    """Which bytes the name means now."""
    return await task.node.images.resolve(body)


async def build(task: Task, body: ArtifactBuild) -> ArtifactBuilt:
    """Pull, unpack, make the file system, store it; or find that it is stored already."""
    return await task.node.images.build(body, task.order.id, task.progress)
