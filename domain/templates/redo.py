"""Redo rules: which replicas are made again, and from which phase on (reference/cubesandbox.md §4.1, scenarios 9 and 10)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused
from domain.templates.progress import Operation, Phase
from domain.templates.targets import select_targets


class RedoMode(StrEnum):
    """``ALL`` healthy nodes, the ``NODES`` named, those whose replica failed, or the named ones whose replica failed."""

    ALL = "ALL"
    NODES = "NODES"
    FAILED_ONLY = "FAILED_ONLY"
    FAILED_NODES = "FAILED_NODES"


class ReplicaView(Record):
    """What these rules need to know of a replica. ``state`` is its state's name."""

    node_id: str
    state: str
    cleanup_required: bool = False
    last_error_phase: str | None = None

    @property
    def failed(self) -> bool:
        """Anything but ready and clean."""
        return self.state != "READY" or self.cleanup_required


def redo_targets(mode: str, scope: Sequence[str], replicas: Sequence[ReplicaView], healthy: Collection[str]) -> tuple[str, ...]:
    """The nodes to make it again on, sorted. Failed replicas on nodes that are not healthy now are left for later.

    Raises as :func:`~domain.templates.targets.select_targets` does, and ``template.no-failed-replicas`` when a mode for failed ones
    finds none.
    """
    wanted = RedoMode(mode)
    named = wanted in {RedoMode.NODES, RedoMode.FAILED_NODES}
    targets = select_targets(scope if named else (), healthy)
    if wanted in {RedoMode.ALL, RedoMode.NODES}:
        return targets
    broken = {replica.node_id for replica in replicas if replica.failed}
    chosen = tuple(node for node in targets if node in broken)
    if not chosen:
        raise Refused("template.no-failed-replicas", "no replica on these nodes has failed", details={"nodes": list(targets)})
    return chosen


def resume_phase(last_phase: str, last_state: str, replicas: Sequence[ReplicaView], operation: str = "CREATE") -> Phase:
    """From where a redo goes on, given the template's latest job, which was an ``operation``.

    Raises ``template.attempt-in-progress`` while that job is at work, and ``template.not-pulled`` when it did not even get the image: then
    there is nothing to take up, and the template has to be created anew.
    """
    if last_state in {"PENDING", "RUNNING"}:
        raise Refused("template.attempt-in-progress", "a job is at work on the template", retryable=True)
    match Phase(last_phase):
        case Phase.SNAPSHOTTING if operation == Operation.COMMIT:  # the sandbox's disk was not copied yet
            return Phase.BUILDING_EXT4
        case Phase.PULLING:
            raise Refused("template.not-pulled", "the last attempt never got the image; create the template anew")
        case Phase.UNPACKING | Phase.BUILDING_EXT4 | Phase.GENERATING_JSON:
            return Phase.BUILDING_EXT4
        case Phase.DISTRIBUTING:
            return Phase.DISTRIBUTING
        case Phase.CREATING_TEMPLATE | Phase.SNAPSHOTTING | Phase.REGISTERING:
            return Phase.SNAPSHOTTING
        case _:
            return _from_replicas(replicas)


def _from_replicas(replicas: Sequence[ReplicaView]) -> Phase:
    """Where the first replica that is not ready went wrong, by node id."""
    broken = next((r for r in sorted(replicas, key=lambda r: r.node_id) if r.state != "READY"), None)
    if broken is not None and broken.last_error_phase == Phase.DISTRIBUTING:
        return Phase.DISTRIBUTING
    return Phase.SNAPSHOTTING
