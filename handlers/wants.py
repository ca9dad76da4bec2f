"""What convergence keeps in mind of templates, replicas and nodes, folded from the log beside the fleet index: a cache, never the truth."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bus.commit import Commit
from domain.kernel.ids import replica_id

REMEMBERED: Final = 4096
USABLE: Final = frozenset({"READY", "PARTIALLY_READY"})


@dataclass(slots=True)
class TemplateEntry:
    """A template that is not gone. ``scope``: where it may be, empty: everywhere; ``busy``: a job is at work on it."""

    template_id: str
    project: str
    scope: frozenset[str]
    driver: str | None
    minimum: int
    maximum: int | None
    priority: int
    status: str = "PENDING"
    busy: bool = True
    going: bool = False

    @property
    def spreads(self) -> bool:
        """Is it wanted on more nodes now?"""
        return self.status in USABLE and not self.busy and not self.going


@dataclass(slots=True)
class Broken:
    """How often in a row a template's replica on a node failed, and when it last did."""

    failures: int
    at: datetime


class Wants:
    """Folds commits in log order."""

    def __init__(self) -> None:
        self.templates: dict[str, TemplateEntry] = {}
        self.broken: dict[str, Broken] = {}
        """By replica id."""
        self.online_since: dict[str, datetime] = {}
        self.converging: dict[str, set[str]] = defaultdict(set)
        """Replica ids that jobs of convergence work on, by node."""
        self.node_of_job: OrderedDict[str, str] = OrderedDict()
        """Of such jobs, the latest ones that have ended too."""
        self._replica_of_job: dict[str, str] = {}

    def apply(self, commit: Commit) -> None:
        fold = _FOLDS.get(commit.type)
        if fold is not None:
            for event in commit.events:
                fold(self, commit, event["type"], event["data"])

    def _template(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        if name == "template.created":
            request = data["request"]
            self.templates[commit.id] = TemplateEntry(
                commit.id,
                commit.project,
                frozenset(request.get("nodes", ())),
                request.get("driver"),
                request.get("min_replicas", 0),
                request.get("max_replicas"),
                request.get("priority", 0),
            )
        entry = self.templates.get(commit.id)
        if entry is None:
            return
        match name:
            case "template.job-begun":
                entry.busy = True
            case "template.settled":
                entry.status = data["status"]
                entry.busy = entry.busy and data.get("job_id") is None
            case "template.failed":
                entry.status, entry.busy = data["status"], False
            case "template.delete-begun" | "template.delete-requested":
                entry.going = True
            case "template.delete-refused" | "template.delete-failed":
                entry.going = False
            case "template.deleted":
                del self.templates[commit.id]

    def _replica(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        del data
        if name == "replica.failed":
            known = self.broken.get(commit.id)
            self.broken[commit.id] = Broken(1 if known is None else known.failures + 1, commit.time)
        elif name in {"replica.ready", "replica.removed"}:
            self.broken.pop(commit.id, None)

    def _job(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        if name == "job.created" and data["operation"] == "CONVERGE":
            node = data["targets"][0]
            self._replica_of_job[commit.id] = replica_id(data["resource_id"], node)
            self.converging[node].add(self._replica_of_job[commit.id])
            self.node_of_job[commit.id] = node
            while len(self.node_of_job) > REMEMBERED and next(iter(self.node_of_job)) not in self._replica_of_job:
                self.node_of_job.popitem(last=False)
        elif name in {"job.succeeded", "job.failed"} and commit.id in self._replica_of_job:
            self.converging[self.node_of_job[commit.id]].discard(self._replica_of_job.pop(commit.id))

    def _node(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        del data
        if name == "node.came-online":
            self.online_since[commit.id] = commit.time


_FOLDS: Final[dict[str, Callable[[Wants, Commit, str, dict[str, Any]], None]]] = {
    "template": Wants._template,  # noqa: SLF001 - the table of its own methods
    "replica": Wants._replica,  # noqa: SLF001
    "job": Wants._job,  # noqa: SLF001
    "node": Wants._node,  # noqa: SLF001
}
