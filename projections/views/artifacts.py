"""``artifacts``: root file systems, shared by all templates of one specification (reference/cubesandbox.md §1.4).

Every project sees them, so owners, which name other projects' templates, are a number here.
"""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import ITEMS, Item
from projections.view import View

GONE: Final = "gone"
"""Kind of deleted artifacts: a later claim builds the same one again."""

VIEW: Final = View(
    "artifacts",
    noun="artifact",
    key="artifact_id",
    shared=True,
    counted="status",
    indexed=("status",),
    fields={
        "artifact_id": "",
        "status": "BUILDING",
        "fingerprint": "",
        "image_digest": None,
        "disk_mb": None,
        "sha256": None,
        "size_bytes": 0,
        "node_id": None,
        "owners": 0,
        "nodes": [],
        "gc_deadline": None,
        "created_at": "",
        "updated_at": "",
        "last_error": None,
    },
)


@VIEW.on("artifact.created")
def created(state: State, fact: Fact) -> None:
    spec = fact.data["spec"]
    item = VIEW.item(
        artifact_id=fact.id,
        fingerprint=fact.data["fingerprint"],
        image_digest=spec["image_digest"],
        disk_mb=spec["disk_mb"],
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.on("artifact.claimed")
def claimed(state: State, fact: Fact) -> None:
    buried = state.get(fact.project, fact.id, kind=GONE)
    if buried is not None:
        state.delete(fact.project, fact.id, kind=GONE)
        state.put(fact.project, fact.id, buried)
    item = state.edit(fact.project, fact.id)
    if item is not None:
        item.update(status="BUILDING", sha256=None, size_bytes=0, node_id=None, last_error=None, updated_at=fact.time)


@VIEW.update("artifact.built")
def built(item: Item, fact: Fact) -> None:
    d = fact.data
    item.update(
        status="READY",
        sha256=d["sha256"],
        size_bytes=d["size_bytes"],
        image_digest=d["image_digest"],
        node_id=d["node_id"],
        gc_deadline=d["gc_deadline"],
        last_error=None,
        updated_at=fact.time,
    )


@VIEW.update("artifact.failed")
def failed(item: Item, fact: Fact) -> None:
    item.update(status="FAILED", last_error=fact.data["error"], updated_at=fact.time)


@VIEW.update("artifact.owner-added")
def owner_added(item: Item, fact: Fact) -> None:
    item.update(owners=item["owners"] + 1, updated_at=fact.time)


@VIEW.update("artifact.owner-dropped")
def owner_dropped(item: Item, fact: Fact) -> None:
    item.update(owners=item["owners"] - 1, gc_deadline=fact.data["gc_deadline"] or item["gc_deadline"], updated_at=fact.time)


@VIEW.update("artifact.cleanup-requested")
def cleanup_requested(item: Item, fact: Fact) -> None:
    item.update(status="CLEANUP_PENDING", updated_at=fact.time)


@VIEW.update("artifact.placed")
def placed(item: Item, fact: Fact) -> None:
    item["nodes"] = sorted({*item["nodes"], fact.data["node_id"]})


@VIEW.update("artifact.unplaced")
def unplaced(item: Item, fact: Fact) -> None:
    item["nodes"] = [node for node in item["nodes"] if node != fact.data["node_id"]]


@VIEW.on("artifact.deleted")
def deleted(state: State, fact: Fact) -> None:
    item = state.get(fact.project, fact.id, kind=ITEMS)
    if item is not None:
        state.put(fact.project, fact.id, {**item, "nodes": [], "owners": 0}, kind=GONE)
    state.delete(fact.project, fact.id)
