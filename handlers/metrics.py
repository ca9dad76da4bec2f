"""What a control plane counts (reference/cubesandbox.md §7; the names are ours where the reference's say CubeSandbox's own).

What happened is counted from the log, since its beginning: every control plane of an installation says the same, also after a restart.
Commands and placing are what this process did.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

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

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(FAMILIES, self._now)
        self._fleet = fleet
        self._operations: dict[str, str] = {}
        """Of the jobs that have not ended."""

    def count(self, commit: Commit) -> None:
        """Something happened."""
        if commit.type == "snapshot":
            for event in commit.events:
                if event["type"] == "snapshot.removed":
                    self.add("strandline_snapshot_delete_total", result="success")
        elif commit.type == "job":
            for event in commit.events:
                if event["type"] == "job.created":
                    self._operations[commit.id] = event["data"]["operation"]
                elif event["type"] in RESULTS and (operation := self._operations.pop(commit.id, None)) is not None:
                    self._ended(operation, RESULTS[event["type"]])

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
