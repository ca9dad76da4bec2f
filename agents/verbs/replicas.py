"""``replica-distribute``, ``-prepare``, ``-remove`` and ``artifact-remove``: templates on this node, and what they are made of."""

from __future__ import annotations

import structlog

from agents.drivers.driver import RuntimeFault
from agents.failures import FailedError
from agents.node import LocalNode
from agents.records import SandboxRecord, replica_entry
from agents.steps import UnwoundError
from agents.stocking import forget as forget_starts
from agents.task import Task
from agents.teardown import take_down
from agents.verbs.provision import bring_up
from domain.kernel.ids import sandbox_id
from domain.nodes.orders import ArtifactRemove, BuildProgress, ReplicaDistribute, ReplicaPrepare, ReplicaPrepared, ReplicaRemove
from domain.sandboxes.spec import ArtifactRef, Recipe, SandboxSpec

log = structlog.get_logger(__name__)


async def distribute(task: Task, body: ReplicaDistribute) -> None:
    """Have the artifact's bytes here, every one of them read and right."""
    await task.node.cache.ensure(ArtifactRef.model_validate(body.artifact), thoroughly=True)


async def prepare(task: Task, body: ReplicaPrepare) -> ReplicaPrepared:
    """Boot a throw-away sandbox of the template, all steps, probe port included, take it down, and keep what sandboxes start from.

    What is kept (phase SNAPSHOTTING) is the pristine disk: the verified read-only base, looked at once more now that something ran on it.
    Nothing of the boot's memory: no driver here keeps memory in a template (reference/runtimes.md §11).
    """
    node = task.node
    spec = SandboxSpec(
        template_id=body.template_id,
        artifact=ArtifactRef.model_validate(body.artifact),
        recipe=Recipe.model_validate(body.recipe),
        driver=body.driver,
    )
    driver = node.drivers.pick(body.driver)
    identifier = sandbox_id("throwaway", task.order.id)
    known = node.find(identifier)
    record = known or SandboxRecord(id=identifier, project=task.order.project, spec=spec, driver=driver.name, throwaway=True)
    try:
        await bring_up(task, record)
    except UnwoundError as unwound:
        raise FailedError(unwound.failure) from unwound
    await take_down(node, identifier, for_ever=False)
    task.progress(BuildProgress(phase="SNAPSHOTTING"))
    path = await node.cache.ensure(spec.artifact)
    async with node.creating:
        await node.roots.prepare(spec.artifact.artifact_id, path)
    node.journal.write(replica_entry(body.template_id, spec.artifact.artifact_id))
    return ReplicaPrepared(versions=node.versions(), driver=driver.name)


async def remove(task: Task, body: ReplicaRemove) -> None:
    """Forget the template here, and its artifact if that was asked for and nothing else uses it."""
    task.node.journal.write(replica_entry(body.template_id, None))
    if body.artifact_id is not None and not _used(task.node, body.artifact_id):
        await forget(task.node, body.artifact_id)


async def remove_artifact(task: Task, body: ArtifactRemove) -> None:
    """Forget an artifact here. Raises ``artifact.in-use`` (retryable) while a sandbox or a snapshot lies over it.

    A boot that is being cut off is waited for: it is the reason why the artifact goes.
    """
    await task.node.cuts.let_go(body.artifact_id)
    await forget(task.node, body.artifact_id)


def _used(node: LocalNode, artifact_id: str) -> bool:
    over = (record.spec.artifact.artifact_id for record in node.memory.sandboxes.values())
    return artifact_id in node.memory.replicas.values() or artifact_id in over


async def forget(node: LocalNode, artifact_id: str) -> None:
    """Remove the node's copy. Raises ``artifact.in-use`` (retryable) while a root or a snapshot lies over it."""
    await forget_starts(node, lambda model: model.spec.artifact.artifact_id == artifact_id)
    try:
        await node.roots.forget(artifact_id)
    except RuntimeFault as fault:
        if fault.code == "artifact.in-use":
            raise RuntimeFault(fault.code, str(fault), retryable=True) from fault
        raise
    await node.cache.remove(artifact_id)
