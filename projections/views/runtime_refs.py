"""``runtime-refs``: which sandbox runs on which snapshot (reference/cubesandbox.md §1.6, §5.5).

One item per sandbox, its present binding or the last one: at most one is ACTIVE. The history is in the log.
"""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.view import View

VIEW: Final = View(
    "runtime-refs",
    noun="runtime-ref",
    key="sandbox_id",
    counted="status",
    indexed=("snapshot_id", "node_id", "status"),
    lookups=("snapshot_id",),
    schema=2,
    fields={
        "sandbox_id": "",
        "snapshot_id": "",
        "node_id": "",
        "generation": 0,
        "status": "ACTIVE",
        "attached_at": "",
        "released_at": None,
        "reason": None,
        "last_error": None,
    },
)


@VIEW.on("snapshot.attached")
def attached(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        sandbox_id=d["sandbox_id"], snapshot_id=fact.id, node_id=d["node_id"], generation=d["generation"], attached_at=fact.time
    )
    state.put(fact.project, d["sandbox_id"], item)


@VIEW.on("snapshot.detached")
def detached(state: State, fact: Fact) -> None:
    item = state.edit(fact.project, fact.data["sandbox_id"])
    if item is not None and item["snapshot_id"] == fact.id and item["status"] == "ACTIVE":
        item.update(status="RELEASED", released_at=fact.time, reason=fact.data["reason"] or None, last_error=None)


@VIEW.on("snapshot.refs-unlisted")
def unlisted(state: State, fact: Fact) -> None:
    _say(state, fact, fact.data["error"])


@VIEW.on("snapshot.refs-listed")
def listed(state: State, fact: Fact) -> None:
    _say(state, fact, None)


def _say(state: State, fact: Fact, error: str | None) -> None:
    """Of every sandbox that runs on it there."""
    for project, sandbox_id in state.find({"snapshot_id": fact.id}, project=fact.project):
        item = state.get(project, sandbox_id)
        if item is not None and (item["node_id"], item["status"]) == (fact.data["node_id"], "ACTIVE"):
            state.put(project, sandbox_id, {**item, "last_error": error})
