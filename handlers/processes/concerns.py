"""Which other processes an event may move, besides the aggregate's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from bus.commit import Commit
from domain.kernel.ids import SYSTEM_PROJECT
from handlers.control import Control
from handlers.fleet import Key
from handlers.processes import convergence

SETTLED = frozenset({"replica.ready", "replica.failed", "replica.removed"})
SPREADS = frozenset({"template.settled", "template.failed", "template.delete-refused"})


def concerns(control: Control, commit: Commit) -> Iterator[Key]:
    """The keys of processes that wait for what this commit says."""
    find = _BY_TYPE.get(commit.type)
    if find is not None:
        yield from find(control, commit)
    yield from _rollouts(control, commit)


def _artifact(control: Control, commit: Commit) -> Iterator[Key]:
    """Jobs that wait for these bytes: the one that builds them, and all others of the same specification."""
    yield from list(control.fleet.jobs_of_artifact.get(commit.id, ()))


def _replica(control: Control, commit: Commit) -> Iterator[Key]:
    """The template that is being deleted, and the job that makes it ready; what its node still lacks."""
    template, _, node = commit.id.partition("_")
    yield ("template", commit.project, template)
    yield from list(control.fleet.jobs_of_resource.get(template, ()))
    yield from list(control.fleet.jobs_of_resource.get(commit.id, ()))
    if any(event["type"] in SETTLED for event in commit.events):
        yield convergence.key(node)


def _job(control: Control, commit: Commit) -> Iterator[Key]:
    """The end of a job of convergence makes room for the next one."""
    node = control.fleet.wants.node_of_job.get(commit.id)
    if node is not None and any(event["type"] in {"job.succeeded", "job.failed"} for event in commit.events):
        yield convergence.key(node)


def _template(control: Control, commit: Commit) -> Iterator[Key]:
    """A template that can be used is wanted on every node."""
    if (commit.project, commit.id) in control.fleet.pools.live:
        yield ("pool", commit.project, commit.id)
    entry = control.fleet.wants.templates.get(commit.id)
    if entry is not None and entry.spreads and any(event["type"] in SPREADS for event in commit.events):
        yield from convergence.keys(control)


def _snapshot(control: Control, commit: Commit) -> Iterator[Key]:
    """The job that takes it, or clones from it."""
    yield from list(control.fleet.jobs_of_resource.get(commit.id, ()))


def _sandbox(control: Control, commit: Commit) -> Iterator[Key]:
    """Its leases of disks, its clone job, its pool; its node's drain, and its template's delete, that it came too late for."""
    yield from _leases(control, commit)
    yield from list(control.fleet.jobs_of_clone.get(commit.id, ()))
    entry = control.fleet.sandboxes.get(commit.id)
    node = None if entry is None else control.fleet.nodes.get(entry.node_id)
    if node is not None and node.scheduling == "DRAINING":
        yield ("node", SYSTEM_PROJECT, node.node_id)
    if (pool := control.fleet.pools.of_member.get(commit.id)) is not None:
        yield ("pool", *pool)
    if commit.id in control.fleet.late:
        yield ("template", commit.project, control.fleet.late[commit.id])


def _leases(control: Control, commit: Commit) -> Iterator[Key]:
    """The leases of a sandbox: over when it ends, let go when nothing of it is left."""
    yield from sorted(control.fleet.lending.of_sandbox.get(commit.id, ()))


def _disk_lease(control: Control, commit: Commit) -> Iterator[Key]:
    """The sandbox that waits for it."""
    del control
    if any(event["type"] == "disk-lease.bound" for event in commit.events):
        yield ("sandbox", commit.project, commit.id.partition("_")[0])


def _rollouts(control: Control, commit: Commit) -> Iterator[Key]:
    """Rollouts that wait for a node, for it to be empty, or for a replica or a job."""
    if any(event["type"] in MOVING for event in commit.events):
        yield from [key for key in control.fleet.open if key[0] == "rollout"]


MOVING: Final = frozenset(
    {
        *("node.came-online", "node.versions-changed", "node.evicted", "node.uncordoned"),
        *("sandbox.destroyed", "sandbox.start-failed", "replica.ready", "replica.removed", "job.succeeded", "job.failed"),
        *("rollout.completed", "rollout.cancelled", "rollout.failed"),
    }
)


def _node(control: Control, commit: Commit) -> Iterator[Key]:
    """Jobs that wait for a node to come or to be given up; after an eviction, everything that was placed there."""
    yield from [key for key in control.fleet.open if key[0] == "job"]
    yield convergence.key(commit.id)
    if any(event["type"] == "node.evicted" for event in commit.events):
        yield from [("sandbox", e.project, e.sandbox_id) for e in control.fleet.sandboxes.values() if e.node_id == commit.id]
        yield from [key for key in control.fleet.open if key[0] in {"provisioning", "snapshot"}]
        yield from [("disk", *disk) for disk in sorted(control.fleet.lending.on_node.get(commit.id, ()))]


_BY_TYPE: dict[str, Callable[[Control, Commit], Iterator[Key]]] = {
    "artifact": _artifact,
    "template": _template,
    "job": _job,
    "replica": _replica,
    "snapshot": _snapshot,
    "sandbox": _sandbox,
    "provisioning": _leases,
    "disk-lease": _disk_lease,
    "node": _node,
}
