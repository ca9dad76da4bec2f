"""``snapshots``: what sandboxes can be created from or rolled back to, with their lineage (reference/cubesandbox.md §5.2).

``parent_id`` is the snapshot that the origin sandbox stood on when this one was taken: the one it had been started from, rolled back to, or
had taken last. ``stored`` says what of it every node can fetch, ``nodes`` which ones have it. Tombstones are hidden, and found by nobody,
while sandboxes still run on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import ITEMS, Item
from projections.view import View

TOMBSTONE: Final = "tombstone"
"""Kind of deleted snapshots whose bytes are still needed."""
HEAD: Final = "head"
"""Kind of the notes that say which snapshot a sandbox stands on."""

NOT_STORED: Final[Item] = {
    "status": "none",
    "manifest": None,
    "size_bytes": 0,
    "chunks": 0,
    "moved_chunks": 0,
    "moved_bytes": 0,
    "error": None,
}
"""``status``: ``none``, ``storing``, ``stored`` or ``failed``; ``moved_*``: what storing it has added to what was stored already."""

VIEW: Final = View(
    "snapshots",
    schema=2,
    noun="snapshot",
    key="snapshot_id",
    counted="status",
    indexed=("status", "origin_sandbox_id"),
    fields={
        "snapshot_id": "",
        "name": "",
        "status": "CREATING",
        "origin_sandbox_id": "",
        "origin_node_id": "",
        "template_id": "",
        "parent_id": None,
        "job_id": "",
        "ephemeral": False,
        "size_bytes": 0,
        "holds": [],
        "runtime_refs": [],
        "runtime_ref_count": 0,
        "created_at": "",
        "updated_at": "",
        "last_error": None,
        "error_code": "",
        "nodes": [],
        "stored": NOT_STORED,
    },
)


@VIEW.on("sandbox.created")
def sandbox_created(state: State, fact: Fact) -> None:
    if fact.data["spec"]["snapshot_id"] is not None:
        state.put(fact.project, fact.id, {"snapshot_id": fact.data["spec"]["snapshot_id"]}, kind=HEAD)


@VIEW.on("sandbox.rolled-back")
def sandbox_rolled_back(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, {"snapshot_id": fact.data["snapshot_id"]}, kind=HEAD)


@VIEW.on("sandbox.destroyed", "sandbox.start-failed")
def sandbox_gone(state: State, fact: Fact) -> None:
    if state.get(fact.project, fact.id, kind=HEAD) is not None:
        state.delete(fact.project, fact.id, kind=HEAD)


@VIEW.on("snapshot.created")
def created(state: State, fact: Fact) -> None:
    d = fact.data
    head = state.get(fact.project, d["sandbox_id"], kind=HEAD)
    item = VIEW.item(
        snapshot_id=fact.id,
        name=d["name"],
        origin_sandbox_id=d["sandbox_id"],
        origin_node_id=d["node_id"],
        template_id=d["template_id"],
        parent_id=None if head is None else head["snapshot_id"],
        job_id=d["job_id"],
        ephemeral=d["ephemeral"],
        nodes=[d["node_id"]],
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.on("snapshot.ready")
def ready(state: State, fact: Fact) -> None:
    item = state.edit(fact.project, fact.id)
    if item is not None:
        item.update(status="READY", size_bytes=fact.data["size_bytes"], holds=fact.data["holds"], updated_at=fact.time)
        state.put(fact.project, item["origin_sandbox_id"], {"snapshot_id": fact.id}, kind=HEAD)


@VIEW.update("snapshot.failed")
def failed(item: Item, fact: Fact) -> None:
    item.update(status="FAILED", last_error=fact.data["error"], error_code=fact.data["code"], updated_at=fact.time)
    if item["stored"]["status"] == "storing":
        item["stored"] = {**NOT_STORED, "status": "failed", "error": fact.data["error"]}


@VIEW.update("snapshot.placed")
def placed(item: Item, fact: Fact) -> None:
    item["nodes"] = sorted({*item["nodes"], fact.data["node_id"]})


@VIEW.update("snapshot.unplaced")
def unplaced(item: Item, fact: Fact) -> None:
    item["nodes"] = [node for node in item["nodes"] if node != fact.data["node_id"]]


@VIEW.update("snapshot.export-requested")
def export_requested(item: Item, fact: Fact) -> None:
    item.update(stored={**NOT_STORED, "status": "storing"}, updated_at=fact.time)


@VIEW.update("snapshot.stored")
def stored(item: Item, fact: Fact) -> None:
    said = {name: value for name, value in fact.data["stored"].items() if name in NOT_STORED}
    item.update(stored={**NOT_STORED, **said, "status": "stored"}, updated_at=fact.time)


@VIEW.update("snapshot.export-failed", "snapshot.unstored")
def not_stored(item: Item, fact: Fact) -> None:
    item.update(stored={**NOT_STORED, "status": "failed", "error": fact.data["error"]}, updated_at=fact.time)


@VIEW.on("snapshot.attached")
def attached(state: State, fact: Fact) -> None:
    _refs(state, fact, lambda refs: refs | {fact.data["sandbox_id"]})


@VIEW.on("snapshot.detached")
def detached(state: State, fact: Fact) -> None:
    _refs(state, fact, lambda refs: refs - {fact.data["sandbox_id"]})


def _refs(state: State, fact: Fact, change: Callable[[set[str]], set[str]]) -> None:
    for kind in (ITEMS, TOMBSTONE):
        item = state.edit(fact.project, fact.id, kind=kind)
        if item is not None:
            refs = sorted(change(set(item["runtime_refs"])))
            item.update(runtime_refs=refs, runtime_ref_count=len(refs))


@VIEW.on("snapshot.deleted")
def deleted(state: State, fact: Fact) -> None:
    item = state.get(fact.project, fact.id)
    if item is not None:
        state.put(fact.project, fact.id, {**item, "status": "DELETED", "updated_at": fact.time}, kind=TOMBSTONE)
    state.delete(fact.project, fact.id)


@VIEW.on("snapshot.removed")
def removed(state: State, fact: Fact) -> None:
    state.delete(fact.project, fact.id, kind=TOMBSTONE)
