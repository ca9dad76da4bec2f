"""Taking away: templates with their replicas, artifacts that nobody owns, snapshots that nobody uses.

A node that is offline does not hold a removal up: its order waits on its lane until it is back (reference/cubesandbox.md §4.4, BUG).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from bus import chunks
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT, replica_id
from domain.nodes.orders import ArtifactRemove, Failure, ReplicaRemove, SnapshotRemove, Verb
from domain.sandboxes.sandbox import Sandbox, SandboxState
from domain.templates.alias import Alias
from domain.templates.artifact import Artifact, ArtifactState
from domain.templates.job import Job
from domain.templates.replica import Replica, ReplicaState
from domain.templates.snapshot import Snapshot, SnapshotState
from domain.templates.template import GONE, Template, TemplateState
from handlers.control import Control
from handlers.fleet_entries import SandboxEntry
from handlers.processes import shipping

DeleteBytes = Callable[[str], Awaitable[None]]


async def pump_template(control: Control, project: str, template_id: str) -> None:
    """Replicas first, then the owner's mark on the artifact and the alias, then the template itself."""
    template = await judge_delete(control, project, template_id)
    if template is None or template.state not in GONE or _any_healthy(control, template_id):
        return
    await _end_job(control, project, template)
    left = [await _remove_replica(control, project, template, node) for node in sorted(control.fleet.by_template.get(template_id, {}))]
    if any(left) or template.state is not TemplateState.DELETING:
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


async def judge_delete(control: Control, project: str, template_id: str) -> Template | None:
    """Let the template decide whether it goes, once the fleet index has got as far as the beginning of its delete; clear latecomers away.

    The log orders everything: a sandbox before the delete makes it refused, one after it was created from a template that is not there
    (docs/adr/0015-deletes-are-decided-by-the-log.md). Whoever comes first does it; nothing depends on who.
    """
    template = await control.find(Template, project, template_id)
    fence = control.fleet.fences.get(template_id)
    if template is None or fence is None:
        return template
    if template.pending_deletes:
        cause = replace(control.own_cause(project, "template", template_id, "judge-delete", fence.seq), event=fence.commit)
        decide = partial(Template.judge_delete, at=cause.at, command_id=fence.command, users=control.fleet.users_before_fence(template_id))
        template = (await control.change(Template, project, template_id, cause, decide)).aggregate
    if template.state in GONE:
        for late in control.fleet.late_users(template_id):
            await _clear_away(control, late)
    return template


async def in_time(control: Control, project: str, template_id: str, seq: int) -> bool | None:
    """Was a sandbox that was created at ``seq`` there before a delete of its template began? None: the index has not got that far.

    If not, that it is cleared away, or that its template stays, is decided when this returns.
    """
    if control.fleet.seq < seq:
        return None
    fence = control.fleet.fences.get(template_id)
    late = fence is not None and fence.seq < seq
    if late:
        await judge_delete(control, project, template_id)
    return not late


async def _clear_away(control: Control, late: SandboxEntry) -> None:
    cause = control.own_cause(late.project, "sandbox", late.sandbox_id, "template-deleted")
    decide = partial(Sandbox.request_delete, at=cause.at, command_id=cause.command, reason="template_deleted")
    await control.change(Sandbox, late.project, late.sandbox_id, cause, decide)


def _any_healthy(control: Control, template_id: str) -> bool:
    """Latecomers go before what they run on; those of a node that is away go when it is back, and hold nothing up."""
    nodes = {late.node_id for late in control.fleet.late_users(template_id)}
    return any(node.healthy for node in control.fleet.nodes.values() if node.node_id in nodes)


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
    begin = control.own_cause(project, "replica", identifier, "remove", replica.version)
    decide = partial(Replica.begin_remove, at=begin.at, job_id=template.last_job)
    replica = (await control.change(Replica, project, identifier, begin, decide)).aggregate
    node = control.fleet.nodes.get(node_id)
    if node is not None and not node.evicted:
        body = ReplicaRemove(template_id=template.id).model_dump(mode="json")
        order = control.new_order(Verb.REPLICA_REMOVE, project, ("replica", identifier), body, key=template.id, salt=str(replica.version))
        await control.order(node_id, order)
    if node is not None and node.healthy:
        return True
    cause = control.own_cause(project, "replica", identifier, "removed", replica.version)
    await control.change(Replica, project, identifier, cause, lambda r: r.removed(cause.at))
    return False


async def disown(control: Control, artifact: str, owner: str) -> None:
    """One owner less; the last one's going starts the clean-up (reference/cubesandbox.md §3.7)."""
    build = (await control.get(Artifact, SYSTEM_PROJECT, artifact)).generation  # a template can let go of each build once
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact, "disown", owner, build)
    await control.change(Artifact, SYSTEM_PROJECT, artifact, cause, lambda a: a.drop_owner(cause.at, owner))
    collect = control.own_cause(SYSTEM_PROJECT, "artifact", artifact, "collect", owner, build)
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
        if (await control.get(Artifact, project, identifier)).generation != artifact.generation:
            return  # a build has claimed it: what is stored now is that one's (reference/cubesandbox.md §11, 12)
        await delete_bytes(identifier)
        cause = control.own_cause(project, "artifact", identifier, "deleted", artifact.generation)
        await control.change(Artifact, project, identifier, cause, lambda a: a.finish_cleanup(cause.at, artifact.generation))

    return pump


async def _remove_placement(control: Control, artifact: Artifact, node_id: str) -> bool:
    node = control.fleet.nodes.get(node_id)
    if node is not None and not node.evicted:
        body = ArtifactRemove(artifact_id=artifact.id).model_dump(mode="json")
        salt = f"{node_id}-{artifact.generation}-{_round(control)}"  # a node that refused is asked again in the next round
        order = control.new_order(Verb.ARTIFACT_REMOVE, SYSTEM_PROJECT, ("artifact", artifact.id), body, key=artifact.id, salt=salt)
        await control.order(node_id, order)
    if node is not None and node.healthy:
        return True
    cause = control.own_cause(SYSTEM_PROJECT, "artifact", artifact.id, "unplaced", node_id, artifact.generation)
    await control.change(Artifact, SYSTEM_PROJECT, artifact.id, cause, lambda a: a.unplaced(cause.at, node_id))
    return False


def _round(control: Control) -> int:
    """Which period of ``collect_s`` seconds this is."""
    return int(control.clock().timestamp() // control.deadlines.collect_s)


async def pump_snapshot(control: Control, project: str, snapshot_id: str) -> None:
    """A tombstone whose last user is gone loses its bytes, wherever they are (reference/cubesandbox.md §5.3)."""
    snapshot = await control.find(Snapshot, project, snapshot_id)
    if snapshot is not None and snapshot.rollback is not None:
        snapshot = await _without_rollback(control, project, snapshot)
    if snapshot is None:
        return
    snapshot = await _without_orphans(control, project, snapshot)
    if not snapshot.removable:
        await shipping.pump(control, project, snapshot)
        return
    for node_id in sorted(snapshot.places):
        node = control.fleet.nodes.get(node_id)
        if node is None or node.evicted:
            await snapshot_unplaced(control, project, snapshot_id, node_id)
            continue
        body = SnapshotRemove(snapshot_id=snapshot_id).model_dump(mode="json")
        order = control.new_order(Verb.SNAPSHOT_REMOVE, project, ("snapshot", snapshot_id), body, key=snapshot_id, salt=node_id)
        await control.order(node_id, order)
    await _forget_snapshot(control, project, await control.get(Snapshot, project, snapshot_id))


async def snapshot_unplaced(control: Control, project: str, snapshot_id: str, node_id: str) -> None:
    """A tombstone's bytes are gone on a node; with the last of them it goes."""
    cause = control.own_cause(project, "snapshot", snapshot_id, "unplaced", node_id)
    done = await control.change(Snapshot, project, snapshot_id, cause, lambda s: s.unplace(cause.at, node_id))
    await _forget_snapshot(control, project, done.aggregate)


async def _without_orphans(control: Control, project: str, snapshot: Snapshot) -> Snapshot:
    """Refs of a tombstone expire after a day, and only those of sandboxes that are gone from the log (reference/cubesandbox.md §5.3).

    A node that is silent proves nothing: its sandboxes are there until it is evicted, and so are their refs.
    """
    if snapshot.state is not SnapshotState.DELETED:
        return snapshot
    oldest = control.clock() - timedelta(seconds=control.deadlines.orphan_ref_s)
    for sandbox_id in sorted(name for name, ref in snapshot.refs.items() if ref.since <= oldest):
        sandbox = await control.find(Sandbox, project, sandbox_id)
        if sandbox is not None and (sandbox.state is not SandboxState.DEAD or sandbox.modified_on > oldest):
            continue
        cause = control.own_cause(project, "snapshot", snapshot.id, "orphan", sandbox_id)
        decide = partial(Snapshot.detach, at=cause.at, sandbox_id=sandbox_id, reason="its sandbox is gone")
        snapshot = (await control.change(Snapshot, project, snapshot.id, cause, decide)).aggregate
    return snapshot


async def _without_rollback(control: Control, project: str, snapshot: Snapshot) -> Snapshot:
    """A rollback that ended without an answer, because its sandbox ended or does something else by now, holds nothing."""
    sandbox = await control.find(Sandbox, project, snapshot.sandbox_id)
    if sandbox is not None and sandbox.may_return_to(snapshot.id):
        return snapshot
    cause = control.own_cause(project, "snapshot", snapshot.id, "end-rollback", snapshot.rollback or 0)
    decide = partial(Snapshot.end_rollback, at=cause.at, generation=snapshot.rollback)
    return (await control.change(Snapshot, project, snapshot.id, cause, decide)).aggregate


async def _forget_snapshot(control: Control, project: str, snapshot: Snapshot) -> None:
    """The bytes are gone everywhere: what is stored of it is nobody's, it owns its artifact no longer, and it is gone itself."""
    if not snapshot.erased:
        return
    await chunks.drop_manifests(control.nc, project, snapshot.id)
    await disown(control, snapshot.artifact.artifact_id, f"{project}/{snapshot.id}")
    cause = control.own_cause(project, "snapshot", snapshot.id, "gone")
    await control.change(Snapshot, project, snapshot.id, cause, lambda s: s.finish_delete(cause.at))
