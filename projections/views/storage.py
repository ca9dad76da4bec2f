"""``storage``: how full each node's disk is and what that still allows (reference/cubesandbox.md §5.7).

Only crossing a limit is an event: in the log, and in answers with ``as_of``, ``usage_pct`` is the usage when the mode last changed. Answers
about now say what the node's last heartbeat said.
"""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "storage",
    noun="node",
    key="node_id",
    shared=True,
    counted="mode",
    fields={"node_id": "", "mode": "unknown", "usage_pct": None, "writable": False, "updated_at": ""},
)


@VIEW.on("node.enrolled")
def enrolled(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, VIEW.item(node_id=fact.id, updated_at=fact.time))


@VIEW.update("node.storage-mode-changed")
def mode_changed(item: Item, fact: Fact) -> None:
    mode = fact.data["mode"]
    item.update(mode=mode, usage_pct=fact.data["pct"], writable=mode in {"healthy", "warn"}, updated_at=fact.time)


@VIEW.update("node.went-offline", "node.evicted")
def unknown(item: Item, fact: Fact) -> None:
    item.update(mode="unknown", usage_pct=None, writable=False, updated_at=fact.time)
