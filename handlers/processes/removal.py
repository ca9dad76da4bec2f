"""Taking away: templates with their replicas, artifacts that nobody owns, snapshots that nobody uses.

A node that is offline does not hold a removal up: its order waits on its lane until it is back (reference/cubesandbox.md §4.4, BUG).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.orders import ArtifactRemove, Failure, ReplicaRemove, SnapshotRemove, Verb
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job
from domain.templates.replica import Replica, ReplicaState
from domain.templates.snapshot import Snapshot
from domain.templates.template import Template, TemplateState
from handlers.control import Control

DeleteBytes = Callable[[str], Awaitable[None]]


async def pump_template(control: Control, project: str, template_id: str) -> None:
    """Replicas first, then the owner's mark on the artifact and the alias, then the template itself."""
    template = await control.find(Template, project, template_id)
    if template is None or template.state is not TemplateState.DELETING:
        return
    await _end_job(control, project, template)
    left = [await _remove_replica(control, project, template, node) for node in sorted(control.fleet.by_template.get(template_id, {}))]
    if any(left):
        return
    if template.artifact_id is not None:
        await disown(control, template.artifact_id, f"{project}/{template_id}")
    if template.alias is not None:
        release = control.own_cause(project, "alias", template.alias, "release", template_id)
        alias = await control.find(Alias, project, template.alias)
        if alias is not None:
            await control.change(Alias, project, template.alias, release, lambda a: a.release(release.at, template_id))
    cause = control.own_cause(project, "template", template_id, "deleted")
    await control.change(Template, project, template_id, cause, lambda t: t.finish_delete(cause.at))


async def _end_job(control: Control, project: str, template: Template) -> None:
    """A forced delete ends the running job first."""
    job = await control.find(Job, project, template.last_job)
    if job is None or not job.active:
        return
    cause = control.own_cause(project, "job", job.id, "cancel")
    failure = Failure(code="template.deleted", message="the template was deleted")
    await control.change(Job, project, job.id, cause, lambda j: j.fail(cause.at, None, failure))


async def _remove_replica(control: Control, project: str, template: Template, node_id: str) -> bool:
    """True while the node still has to answer."""
    identifier = replica_id(template.id, node_id)
    replica = await control.find(Replica, project, identifier)
    if replica is None or replica.state is ReplicaState.REMOVED:
        return False
    begin = control.own_cause(project, "replica", identifier, "remove")
    await control.change(Replica, project, identifier, begin, lambda r: r.begin_remove(begin.at, template.last_job))
    node = control.fleet.nodes.get(node_id)
    if node is not None and not node.evicted:
        body = ReplicaRemove(template_id=template.id).model_dump(mode="json")
        order = control.new_order(Verb.REPLICA_REMOVE, project, ("replica", identifier), body, key=template.id)
        await control.order(node_id, order)
    if node is not None and node.healthy:
        return True
    cause = control.own_cause(project, "replica", identifier, "removed")
    await control.change(Replica, project, identifier, cause, lambda r: r.removed(cause.at))
    return False


async def disown(control: Control, artifact: str, owner: str) -> None:
    """One owner less; the last one's going starts the clean-up (reference/cubesandbox.md §3.7)."""
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact, "disown", owner)
    await control.change(Artifact, SYSTEM_PROJECT, artifact, cause, lambda a: a.drop_owner(cause.at, owner))
    collect = control.own_cause(SYSTEM_PROJECT, "artifact", artifact, "collect", owner)
    try:
        await control.change(Artifact, SYSTEM_PROJECT, artifact, collect, lambda a: a.request_cleanup(collect.at))
    except Refused as refusal:
        if refusal.code != "artifact.in-use":
            raise


def artifact_pump(delete_bytes: DeleteBytes) -> Callable[[Control, str, str], Awaitable[None]]:
    """The pump of artifacts that are to go, given how their bytes are deleted from the object store."""

    async def pump(control: Control, project: str, identifier: str) -> None:
        artifact = await control.find(Artifact, project, identifier)
        if artifact is None or artifact.state is not ArtifactState.CLEANUP_PENDING:
            return
        waiting = [await _remove_placement(control, artifact, node) for node in sorted(artifact.placements)]
        if any(waiting):
            return
        await delete_bytes(identifier)
        cause = control.own_cause(project, "artifact", identifier, "deleted", artifact.generation)
        await control.change(Artifact, project, identifier, cause, lambda a: a.finish_cleanup(cause.at, artifact.generation))

    return pump


async def _remove_placement(control: Control, artifact: Artifact, node_id: str) -> bool:
    node = control.fleet.nodes.get(node_id)
    if node is not None and not node.evicted:
        body = ArtifactRemove(artifact_id=artifact.id).model_dump(mode="json")
        order = control.new_order(
            Verb.ARTIFACT_REMOVE, SYSTEM_PROJECT, ("artifact", artifact.id), body, key=artifact.id, salt=f"{node_id}-{artifact.generation}"
        )
        await control.order(node_id, order)
    if node is not None and node.healthy:
        return True
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "unplaced", node_id, artifact.generation)
    await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.unplaced(cause.at, node_id))
    return False


async def pump_snapshot(control: Control, project: str, snapshot_id: str) -> None:
    """A tombstone whose last user is gone loses its bytes, wherever they are (reference/cubesandbox.md §5.3)."""
    snapshot = await control.find(Snapshot, project, snapshot_id)
    if snapshot is None or not snapshot.removable:
        return
    node = control.fleet.nodes.get(snapshot.node_id)
    if node is not None and not node.evicted:
        body = SnapshotRemove(snapshot_id=snapshot_id).model_dump(mode="json")
        await control.order(
            node.node_id, control.new_order(Verb.SNAPSHOT_REMOVE, project, ("snapshot", snapshot_id), body, key=snapshot_id)
        )
        return
    await forget_snapshot(control, project, snapshot)


async def forget_snapshot(control: Control, project: str, snapshot: Snapshot) -> None:
    """The bytes are gone: the snapshot is, and it owns its artifact no longer."""
    await disown(control, snapshot.artifact.artifact_id, f"{project}/{snapshot.id}")
    cause = control.own_cause(project, "snapshot", snapshot.id, "gone")
    await control.change(Snapshot, project, snapshot.id, cause, lambda s: s.finish_delete(cause.at))
