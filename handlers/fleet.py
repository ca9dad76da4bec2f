"""The fleet index: what the control plane keeps in mind of nodes, replicas, sandboxes and open work, folded from the log.

It answers "where can this go?" and "what is not finished?" without asking a projector, so that sandboxes start while projectors are down.
It is a cache of the log and never the truth: whoever acts on it asks an aggregate, which may refuse.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any

from bus.commit import Commit
from domain.nodes.orders import Capacity, Versions
from domain.nodes.placement import Overcommit
from handlers.fleet_entries import Dead, Fence, NodeEntry, ReplicaEntry, SandboxEntry
from handlers.lending import Lending
from handlers.openings import CLOSING, OPENING
from handlers.pools_index import Pools
from handlers.wants import Wants

Key = tuple[str, str, str]
"""(aggregate type, project, id)."""


class Fleet:
    """Folds commits, in log order; redelivery is a no-op because ``seq`` must grow."""

    def __init__(self) -> None:
        self.seq = 0
        self._grew = asyncio.Event()
        self.nodes: dict[str, NodeEntry] = {}
        self.replicas: dict[tuple[str, str], ReplicaEntry] = {}
        self.by_template: dict[str, dict[str, ReplicaEntry]] = defaultdict(dict)
        self.wants = Wants()
        self.lending = Lending()
        self.pools = Pools()
        self.sandboxes: dict[str, SandboxEntry] = {}
        self.dead: dict[str, Dead] = {}
        self.users: dict[str, set[str]] = defaultdict(set)
        self.fences: dict[str, Fence] = {}
        self.late: dict[str, str] = {}
        self.policies: dict[str, str] = {}  # compat policies of templates, where somebody has set one
        self.open: dict[Key, datetime] = {}
        self._promised: dict[str, tuple[str, float, int]] = {}
        self.artifacts: set[str] = set()
        self.snapshots_on: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.jobs_of_artifact: dict[str, set[Key]] = defaultdict(set)
        self.jobs_of_resource: dict[str, set[Key]] = defaultdict(set)
        self.jobs_of_clone: dict[str, set[Key]] = defaultdict(set)
        self._indexed: dict[Key, list[tuple[dict[str, set[Key]], str]]] = defaultdict(list)

    def apply(self, commit: Commit) -> None:
        """Take in one commit."""
        if commit.seq <= self.seq:
            return
        self.seq = commit.seq
        self.wants.apply(commit)
        self.lending.apply(commit)
        self.pools.apply(commit)
        fold = _FOLDS.get(commit.type)
        for event in commit.events:
            if fold is not None:
                fold(self, commit, event["type"], event["data"])
            self._track(commit, event["type"], event["data"])
        self._grew.set()

    async def reached(self, seq: int) -> None:
        """Wait until everything up to ``seq`` is folded: a process that is woken by a commit must see it here too."""
        while self.seq < seq:
            self._grew.clear()
            await self._grew.wait()

    def _track(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        key = (commit.type, commit.project, commit.id)
        if name in CLOSING or (name == "provisioning.failed" and not data.get("uncompensated")):
            self.open.pop(key, None)
        elif name in OPENING:
            self.open[key] = commit.time

    def open_since(self, before: datetime) -> Iterator[Key]:
        """Work that was opened before ``before`` and is not finished, for the watchdog."""
        return iter([key for key, since in self.open.items() if since < before])

    def healthy_nodes(self) -> list[NodeEntry]:
        """Healthy nodes by id."""
        return sorted((n for n in self.nodes.values() if n.healthy), key=lambda n: n.node_id)

    def builders(self) -> list[NodeEntry]:
        """Healthy nodes that build, the ones with the fewest sandboxes first."""
        return sorted(
            (n for n in self.healthy_nodes() if "builder" in n.roles), key=lambda n: (n.scheduling != "OPEN", n.sandboxes, n.node_id)
        )

    def burden(self, node_id: str) -> tuple[bool, int]:
        """Is the node closed to sandboxes, and how many replicas has it?"""
        return self.nodes[node_id].scheduling != "OPEN", sum(node == node_id for _, node in self.replicas)

    def unheld(self, node_id: str, held: Collection[str]) -> list[SandboxEntry]:
        """Live sandboxes that were placed on a node and are not among those that it holds. Cheap when it holds as many as it should."""
        node = self.nodes.get(node_id)
        if node is None or sum(name in self.sandboxes for name in held) >= node.sandboxes:
            return []
        return [entry for entry in self.sandboxes.values() if entry.node_id == node_id and entry.sandbox_id not in held]

    def users_of(self, template_or_snapshot: str) -> list[str]:
        """Live sandboxes that were created from it, by id."""
        return sorted(self.users.get(template_or_snapshot, ()))

    def users_before_fence(self, template_id: str) -> list[str]:
        """Live sandboxes of a template that were there before its delete began, by id: they decide whether it may go."""
        fence = self.fences[template_id]
        return [user for user in self.users_of(template_id) if self.sandboxes[user].seq < fence.seq]

    def late_users(self, template_id: str) -> list[SandboxEntry]:
        """Live sandboxes that were created from the template itself after its delete began, by id."""
        return [self.sandboxes[user] for user in self.users_of(template_id) if user in self.late]

    # ------------------------------------------------------------------------------------------------------ folds

    def _template(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        """Compat policy, and where a delete began: also of templates that are gone, who has not heard of it may still create from them."""
        if name in {"template.delete-begun", "template.delete-requested"}:
            self.fences.setdefault(commit.id, Fence(commit.seq, commit.commit, data.get("command", "")))
        elif name in {"template.delete-refused", "template.delete-failed"}:
            self.fences.pop(commit.id, None)
        elif name == "template.compat-policy-set":
            self.policies[commit.id] = data["policy"]
        elif name == "template.deleted":
            self.policies.pop(commit.id, None)

    def _node(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        node = self.nodes.setdefault(commit.id, NodeEntry(commit.id))
        match name:
            case "node.described":
                node.drivers = tuple(d["name"] for d in data["drivers"])
                node.flags = {d["name"]: tuple(d.get("flags", ())) for d in data["drivers"]}
                node.roles = tuple(data.get("roles", ("builder", "runner")))
                node.capacity = Capacity.model_validate(data["capacity"])
                node.roots = data.get("host", {}).get("roots", "")
                node.disks = tuple(filter(None, data.get("host", {}).get("disks", "").split(",")))
            case "node.versions-changed":
                node.versions = Versions.model_validate(data["versions"])
            case "node.storage-mode-changed":
                node.storage_mode = data["mode"].lower()
            case "node.configured":
                node.labels, node.overcommit = data.get("labels", {}), Overcommit.model_validate(data.get("overcommit", {}))
            case _:
                for attribute, value in NODE_CHANGES.get(name, {}).items():
                    setattr(node, attribute, value)

    def _replica(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        template, _, node = commit.id.partition("_")
        entry = self.replicas.get((template, node))
        if entry is None:
            entry = self.replicas[template, node] = self.by_template[template][node] = ReplicaEntry(template, node, commit.project)
        match name:
            case "replica.ready":
                entry.state, entry.bound = "READY", Versions.model_validate(data["versions"])
                entry.driver = data.get("driver", "")
            case "replica.baseline-adopted":
                entry.bound = Versions.model_validate(data["versions"])
            case "replica.removed":
                self.replicas.pop((template, node), None)
                self.by_template[template].pop(node, None)
            case _:
                entry.state = REPLICA_STATES.get(name, entry.state)

    def _sandbox(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        if name == "sandbox.created":
            self._place(commit, data)
            return
        if name == "sandbox.forgotten":
            self.dead.pop(commit.id, None)
        entry = self.sandboxes.get(commit.id)
        if entry is None:
            return
        if name in LIMITING:
            self._limit(entry, name, data)
        if name not in SANDBOX_DEAD:
            return
        del self.sandboxes[commit.id]
        self.dead[commit.id] = Dead(commit.project, commit.time)
        self._use(entry.node_id, -entry.cpu, -entry.memory_mb, -1)
        for source in filter(None, (entry.template_id, entry.snapshot_id)):
            self.users[source].discard(entry.sandbox_id)

    def _limit(self, entry: SandboxEntry, name: str, data: dict[str, Any]) -> None:
        """It may use more or less than before. While that is being asked of its node, the greater counts."""
        wanted = data.get("limits") or data.get("operation", {}).get("limits")
        if name == "sandbox.operation-failed":
            wanted, entry.before = entry.before, None
        if wanted is None:
            return
        cpu, memory_mb = wanted["cpu"], wanted["memory_mb"]
        if name == "sandbox.operation-begun":
            entry.before = {"cpu": entry.cpu, "memory_mb": entry.memory_mb}
            cpu, memory_mb = max(cpu, entry.cpu), max(memory_mb, entry.memory_mb)
        self._use(entry.node_id, cpu - entry.cpu, memory_mb - entry.memory_mb, 0)
        entry.cpu, entry.memory_mb = cpu, memory_mb

    def _place(self, commit: Commit, data: dict[str, Any]) -> None:
        spec = data["spec"]
        recipe = spec["recipe"]
        entry = SandboxEntry(
            commit.id,
            commit.project,
            data["node_id"],
            spec["template_id"],
            spec.get("snapshot_id"),
            recipe.get("cpu", 1),
            recipe.get("memory_mb", 512),
            commit.seq,
        )
        if entry.snapshot_id is None and entry.template_id in self.fences:
            self.late[commit.id] = entry.template_id
        self.withdraw(commit.id)
        self.sandboxes[commit.id] = entry
        self._use(entry.node_id, entry.cpu, entry.memory_mb, 1)
        for source in filter(None, (entry.template_id, entry.snapshot_id)):
            self.users[source].add(entry.sandbox_id)

    def promise(self, sandbox_id: str, node_id: str, cpu: float, memory_mb: int) -> None:
        """Count a placement before its event is stored, so that a burst of requests does not all see the same free node."""
        if sandbox_id not in self.sandboxes and sandbox_id not in self._promised:
            self._promised[sandbox_id] = (node_id, cpu, memory_mb)
            self._use(node_id, cpu, memory_mb, 1)

    def withdraw(self, sandbox_id: str) -> None:
        """The placement came to nothing, or its event is here."""
        promised = self._promised.pop(sandbox_id, None)
        if promised is not None:
            node_id, cpu, memory_mb = promised
            self._use(node_id, -cpu, -memory_mb, -1)

    def _use(self, node_id: str, cpu: float, memory_mb: int, sandboxes: int) -> None:
        node = self.nodes.setdefault(node_id, NodeEntry(node_id))
        node.used_cpu += cpu
        node.used_memory_mb += memory_mb
        node.sandboxes += sandboxes

    def _job(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        key = ("job", commit.project, commit.id)
        if name == "job.created":
            on = f"_{data['targets'][0]}" if data["operation"] == "CONVERGE" else ""
            self._index(key, self.jobs_of_resource, data["resource_id"] + on)
            for clone in data.get("request", {}).get("clones", ()):
                self._index(key, self.jobs_of_clone, clone)
        elif name == "job.noted" and "artifact_id" in data["facts"]:
            self._index(key, self.jobs_of_artifact, data["facts"]["artifact_id"])
        elif name in CLOSING:
            for index, entry in self._indexed.pop(key, ()):
                index[entry].discard(key)
                if not index[entry]:
                    del index[entry]

    def _index(self, key: Key, index: dict[str, set[Key]], entry: str) -> None:
        if key not in index[entry]:
            index[entry].add(key)
            self._indexed[key].append((index, entry))

    def _artifact(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        del data
        (self.artifacts.discard if name == "artifact.deleted" else self.artifacts.add)(commit.id)

    def _snapshot(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        if name in {"snapshot.created", "snapshot.placed"}:
            self.snapshots_on[data["node_id"]].add((commit.project, commit.id))
        elif name == "snapshot.unplaced":
            self.snapshots_on[data["node_id"]].discard((commit.project, commit.id))


NODE_CHANGES: dict[str, dict[str, Any]] = {
    "node.enrolled": {"online": False, "evicted": False, "scheduling": "OPEN"},
    "node.re-enrolled": {"online": False, "evicted": False, "scheduling": "OPEN"},
    "node.came-online": {"online": True},
    "node.went-offline": {"online": False, "storage_mode": "unknown"},
    "node.cordoned": {"scheduling": "CORDONED"},
    "node.uncordoned": {"scheduling": "OPEN"},
    "node.draining": {"scheduling": "DRAINING"},
    "node.evicted": {"evicted": True, "storage_mode": "unknown"},
}
REPLICA_STATES = {
    "replica.created": "PENDING",
    "replica.distributing": "DISTRIBUTING",
    "replica.distributed": "DISTRIBUTED",
    "replica.preparing": "SNAPSHOTTING",
    "replica.failed": "FAILED",
    "replica.redone": "PENDING",
    "replica.cleaning": "CLEANING",
}
LIMITING = frozenset({"sandbox.operation-begun", "sandbox.limits-changed", "sandbox.operation-failed"})
SANDBOX_DEAD = frozenset({"sandbox.start-failed", "sandbox.destroyed"})
_FOLDS: dict[str, Callable[[Fleet, Commit, str, dict[str, Any]], None]] = {
    "node": Fleet._node,  # noqa: SLF001 - the table of its own methods
    "replica": Fleet._replica,  # noqa: SLF001
    "sandbox": Fleet._sandbox,  # noqa: SLF001
    "template": Fleet._template,  # noqa: SLF001
    "job": Fleet._job,  # noqa: SLF001
    "artifact": Fleet._artifact,  # noqa: SLF001
    "snapshot": Fleet._snapshot,  # noqa: SLF001
}
