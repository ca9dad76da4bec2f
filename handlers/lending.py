"""Which disks are on which node, and which leases a sandbox may still have, folded from the log: a cache, never the truth."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bus.commit import Commit

Key = tuple[str, str, str]

_OVER = frozenset({"disk.detached", "disk.returned"})


class Lending:
    """Folds commits in log order."""

    def __init__(self) -> None:
        self.on_node: dict[str, set[tuple[str, str]]] = defaultdict(set)
        """(project, disk) by node."""
        self.of_sandbox: dict[str, set[Key]] = defaultdict(set)
        """Keys of leases by sandbox, until nothing of the disk is mounted for it any more."""
        self._node_of: dict[tuple[str, str], str] = {}

    def apply(self, commit: Commit) -> None:
        if commit.type == "disk":
            for event in commit.events:
                self._disk(commit, event["type"], event["data"])
        elif commit.type == "disk-lease":
            for event in commit.events:
                if event["type"] == "disk-lease.requested":
                    self.of_sandbox[event["data"]["sandbox_id"]].add((commit.type, commit.project, commit.id))

    def _disk(self, commit: Commit, name: str, data: dict[str, Any]) -> None:
        disk = (commit.project, commit.id)
        if name in {"disk.created", "disk.recreated"}:
            self._node_of[disk] = data["node_id"]
            self.on_node[data["node_id"]].add(disk)
        elif name == "disk.deleted" and disk in self._node_of:
            self.on_node[self._node_of.pop(disk)].discard(disk)
        elif name in _OVER:
            self._forget(data["sandbox_id"], ("disk-lease", commit.project, f"{data['sandbox_id']}_{commit.id}"))

    def _forget(self, sandbox_id: str, lease: Key) -> None:
        leases = self.of_sandbox.get(sandbox_id, set())
        leases.discard(lease)
        if not leases:
            self.of_sandbox.pop(sandbox_id, None)
