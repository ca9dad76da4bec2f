"""``disks``: what outlives sandboxes, where it is, who has it, and what is kept of it. A deleted disk is not shown."""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "disks",
    noun="disk",
    key="disk_id",
    counted="status",
    indexed=("status", "node_id"),
    fields={
        "disk_id": "",
        "volume_id": "",
        "status": "PROVISIONING",
        "node_id": "",
        "size_mb": 0,
        "filesystem": None,
        "quota": True,
        "sandbox_id": None,
        "bound": False,
        "attached_to": None,
        "epoch": 0,
        "operation": None,
        "snapshots": [],
        "source": None,
        "created_at": "",
        "updated_at": "",
        "last_error": None,
        "error_code": "",
    },
)


@VIEW.on("disk.created", "disk.recreated")
def created(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        disk_id=fact.id,
        volume_id=d["volume_id"],
        node_id=d["node_id"],
        size_mb=d["size_mb"],
        filesystem=d["filesystem"],
        source=d["source"] and {"disk": d["source"]["disk"], "snapshot": d["source"]["snapshot"]},
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("disk.provisioned")
def provisioned(item: Item, fact: Fact) -> None:
    item.update(status="PROVISIONED", quota=fact.data["quota"], updated_at=fact.time)


@VIEW.update("disk.failed")
def failed(item: Item, fact: Fact) -> None:
    _error(item, fact)
    item.update(status="ERROR")


@VIEW.update("disk.lost")
def lost(item: Item, fact: Fact) -> None:
    _error(item, fact)
    item.update(status="ERROR", sandbox_id=None, bound=False, attached_to=None, operation=None)


@VIEW.update("disk.lent")
def lent(item: Item, fact: Fact) -> None:
    item.update(sandbox_id=fact.data["sandbox_id"], updated_at=fact.time)


@VIEW.update("disk.attached")
def attached(item: Item, fact: Fact) -> None:
    item.update(bound=True, attached_to=fact.data["sandbox_id"], epoch=fact.data["epoch"], updated_at=fact.time)


@VIEW.update("disk.returned", "disk.released")
def handed_back(item: Item, fact: Fact) -> None:
    item.update(sandbox_id=None, bound=False, updated_at=fact.time)


@VIEW.update("disk.detached")
def detached(item: Item, fact: Fact) -> None:
    item.update(attached_to=None, updated_at=fact.time)


@VIEW.update("disk.operation-begun")
def operation_begun(item: Item, fact: Fact) -> None:
    item.update(operation=fact.data["operation"]["kind"], updated_at=fact.time)


@VIEW.update("disk.grown")
def grown(item: Item, fact: Fact) -> None:
    item.update(size_mb=fact.data["size_mb"], operation=None, updated_at=fact.time)


@VIEW.update("disk.snapshot-taken")
def snapshot_taken(item: Item, fact: Fact) -> None:
    taken = fact.data["snapshot"]
    kept = {"name": taken["name"], "created_at": taken["at"], "size_mb": taken["size_mb"], "size_bytes": taken["size_bytes"]}
    item.update(snapshots=[*item["snapshots"], kept], operation=None, updated_at=fact.time)


@VIEW.update("disk.snapshot-removed")
def snapshot_removed(item: Item, fact: Fact) -> None:
    item.update(snapshots=[s for s in item["snapshots"] if s["name"] != fact.data["snapshot"]], operation=None, updated_at=fact.time)


@VIEW.update("disk.operation-failed")
def operation_failed(item: Item, fact: Fact) -> None:
    _error(item, fact)
    item.update(operation=None)


@VIEW.update("disk.delete-requested")
def delete_requested(item: Item, fact: Fact) -> None:
    item.update(status="DELETING", operation=None, updated_at=fact.time)


@VIEW.update("disk.delete-failed")
def delete_failed(item: Item, fact: Fact) -> None:
    _error(item, fact)


@VIEW.on("disk.deleted")
def deleted(state: State, fact: Fact) -> None:
    state.delete(fact.project, fact.id)


def _error(item: Item, fact: Fact) -> None:
    failure = fact.data["failure"]
    item.update(last_error=failure["message"], error_code=failure["code"], updated_at=fact.time)
