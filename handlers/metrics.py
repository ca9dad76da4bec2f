"""What a control plane counts (reference/cubesandbox.md §7; the names are ours where the reference's say CubeSandbox's own).

What happened is counted from the log, since its beginning: every control plane of an installation says the same, also after a restart.
Commands and placing are what this process did.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from bus.commit import Commit
from bus.endpoints import Reply, Request
from bus.metrics import Metrics, Sample
from domain.kernel.errors import Refused
from domain.nodes.storage_modes import StorageMode
from handlers.control import Control
from handlers.fleet import Fleet

FAMILIES: Final = {
    "strandline_snapshot_commit_total": ("counter", "Snapshots that were taken, or were to be, by result."),
    "strandline_snapshot_rollback_total": ("counter", "Rollbacks, by result."),
    "strandline_snapshot_delete_total": ("counter", "Snapshots of which nothing is left any more."),
    "strandline_snapshot_orphan_count": ("gauge", "Snapshots that are deleted and not yet removed: something still runs on them."),
    "strandline_snapshot_storage_mode": ("gauge", "1 for the mode that a node's storage is in, 0 for the others."),
    "strandline_job_total": ("counter", "Jobs that ended, by operation and result."),
    "strandline_saga_executions_started_total": ("counter", "Sandboxes that began to be brought up (reference/miren-sandbox.md §2.7)."),
    "strandline_saga_executions_finished_total": ("counter", "How that ended: completed, rolled_back, superseded or abandoned."),
    "strandline_saga_compensation_failures_total": ("counter", "How often something of it could not be undone."),
    "strandline_saga_recoveries_total": ("counter", "How often a node was told once more to go on with it, or to undo it."),
    "strandline_saga_incomplete_executions": ("gauge", "Those that were begun and have not ended."),
    "strandline_saga_incomplete_oldest_age_seconds": ("gauge", "How long the oldest of these has been under way; 0 without one."),
    "strandline_node_count": ("gauge", "Nodes by status."),
    "strandline_sandbox_count": ("gauge", "Sandboxes that live, by node."),
    "strandline_unfinished_count": ("gauge", "Work that was begun and has not ended, by the type of its aggregate."),
    "strandline_log_position": ("gauge", "How far this control plane has read the log."),
    "strandline_command_seconds": ("summary", "Commands that this control plane answered, by noun.verb and the code of the answer."),
    "strandline_template_resolve_seconds": (
        "summary",
        "Finding a template and a node for a sandbox, by the code of the answer.",
    ),
    "strandline_template_resolve_stage_seconds": (
        "summary",
        "The same by stage: resolve (the name), request (what is started), place (the node).",
    ),
}
BY_OPERATION: Final = {
    "SNAPSHOT_CREATE": "strandline_snapshot_commit_total",
    "SNAPSHOT_ROLLBACK": "strandline_snapshot_rollback_total",
}
UNDOING: Final = frozenset({"provisioning.failed", "provisioning.undo-failed", "provisioning.blocked"})
OUTCOMES: Final = {
    "provisioning.failed": "rolled_back",
    "provisioning.completed": "completed",
    "provisioning.superseded": "superseded",
    "provisioning.abandoned": "abandoned",
}
RESULTS: Final = {"job.succeeded": "success", "job.failed": "error"}

Handle = Callable[[Request], Awaitable[Reply]]


@contextmanager
def stage(control: Control, name: str) -> Iterator[None]:
    """Measure the block as a stage of the finding, if anybody wants to know."""
    began, code = time.perf_counter(), "ok"
    try:
        yield
    except Refused as refused:
        code = refused.code
        raise
    finally:
        if control.metrics is not None:
            control.metrics.observe("strandline_template_resolve_stage_seconds", time.perf_counter() - began, stage=name, code=code)


class ControlMetrics(Metrics):
    """Fed with every commit of the log, in its order."""

    def __init__(self, fleet: Fleet, clock: Callable[[], datetime]) -> None:
        super().__init__(FAMILIES, self._now)
        self._fleet = fleet
        self._clock = clock
        self._begun: dict[tuple[str, str], datetime] = {}
        """Sagas under way, and since when."""
        self._operations: dict[str, str] = {}
        """Of the jobs that have not ended."""

    def count(self, commit: Commit) -> None:
        """Something happened."""
        if commit.type == "snapshot":
            for event in commit.events:
                if event["type"] == "snapshot.removed":
                    self.add("strandline_snapshot_delete_total", result="success")
        elif commit.type == "provisioning":
            for event in commit.events:
                self._saga(commit, event["type"], event["data"])
        elif commit.type == "job":
            for event in commit.events:
                if event["type"] == "job.created":
                    self._operations[commit.id] = event["data"]["operation"]
                elif event["type"] in RESULTS and (operation := self._operations.pop(commit.id, None)) is not None:
                    self._ended(operation, RESULTS[event["type"]])

    def _saga(self, commit: Commit, name: str, data: Mapping[str, Any]) -> None:
        execution, left = (commit.project, commit.id), bool(data.get("uncompensated"))
        if name == "provisioning.begun":
            self.add("strandline_saga_executions_started_total")
            self._begun[execution] = commit.time
        elif name == "provisioning.retried":
            self.add("strandline_saga_recoveries_total")
        elif left and name in UNDOING:
            self.add("strandline_saga_compensation_failures_total")
        elif name in OUTCOMES:
            self.add("strandline_saga_executions_finished_total", outcome=OUTCOMES[name])
            self._begun.pop(execution, None)

    def _ended(self, operation: str, result: str) -> None:
        self.add("strandline_job_total", operation=operation, result=result)
        if operation in BY_OPERATION:
            self.add(BY_OPERATION[operation], result=result)

    def timed(self, handle: Handle) -> Handle:
        """The same, with its calls measured."""

        async def measured(request: Request) -> Reply:
            began, code = time.perf_counter(), "ok"
            try:
                return await handle(request)
            except Refused as refused:
                code = refused.code
                raise
            finally:
                self.observe("strandline_command_seconds", time.perf_counter() - began, command=request.name, code=code)

        return measured

    def _now(self) -> Iterable[Sample]:
        fleet = self._fleet
        yield "strandline_log_position", {}, fleet.seq
        unfinished = Counter(kind for kind, _, _ in fleet.open)
        yield "strandline_snapshot_orphan_count", {}, unfinished["snapshot"]
        oldest = min(self._begun.values(), default=None)
        yield "strandline_saga_incomplete_executions", {}, len(self._begun)
        yield "strandline_saga_incomplete_oldest_age_seconds", {}, (self._clock() - oldest).total_seconds() if oldest else 0
        for kind, number in sorted(unfinished.items()):
            yield "strandline_unfinished_count", {"type": kind}, number
        for status, number in sorted(Counter(_status(fleet, node_id) for node_id in fleet.nodes).items()):
            yield "strandline_node_count", {"status": status}, number
        for node in fleet.nodes.values():
            yield "strandline_sandbox_count", {"node_id": node.node_id}, node.sandboxes
            for mode in StorageMode:
                yield "strandline_snapshot_storage_mode", {"node_id": node.node_id, "mode": mode.value}, mode.value == node.storage_mode


def _status(fleet: Fleet, node_id: str) -> str:
    node = fleet.nodes[node_id]
    if node.evicted:
        return "evicted"
    return ("ready" if node.scheduling == "OPEN" else node.scheduling.lower()) if node.online else "offline"
