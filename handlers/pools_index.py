"""What is kept in mind of pools, folded from the log beside the fleet index: which templates have one, and whose member a sandbox is."""

from __future__ import annotations

from typing import Any, Final

from bus.commit import Commit

Address = tuple[str, str]
"""(project, template id)."""
LEFT: Final = frozenset({"pool.member-left", "pool.handed-over"})


class Pools:
    """``live``: pools that are not gone, and whether they are warm; ``known``: all that there ever were.

    ``claiming``: members that this process is just handing over.
    """

    def __init__(self) -> None:
        self.live: dict[Address, bool] = {}
        self.known: set[Address] = set()
        self.of_member: dict[str, Address] = {}
        self.claiming: set[str] = set()

    def warm(self, project: str, template_id: str) -> bool:
        """Has the template a pool whose members are handed over?"""
        return self.live.get((project, template_id), False)

    def apply(self, commit: Commit) -> None:
        """Take in one commit, in log order."""
        if commit.type != "pool":
            return
        for event in commit.events:
            self._fold((commit.project, commit.id), event["type"], event["data"])

    def _fold(self, address: Address, name: str, data: dict[str, Any]) -> None:
        if name in {"pool.created", "pool.configured"}:
            self.known.add(address)
            self.live[address] = data.get("settings", {}).get("warm", True)
        elif name == "pool.member-added":
            self.of_member[data["sandbox_id"]] = address
        elif name in LEFT:
            self.of_member.pop(data["sandbox_id"], None)
        elif name == "pool.deleted":
            self.live.pop(address, None)
