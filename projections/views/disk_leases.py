"""``disk-leases``: who has, waits for, or had which disk. Leases that are over stay, as part of the story."""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "disk-leases",
    noun="disk-lease",
    key="lease_id",
    counted="status",
    indexed=("status", "disk", "sandbox_id"),
    fields={
        "lease_id": "",
        "disk": "",
        "sandbox_id": "",
        "node_id": "",
        "status": "PENDING",
        "mount_path": "",
        "read_only": False,
        "epoch": 0,
        "deadline": "",
        "reason": None,
        "last_error": None,
        "error_code": "",
        "created_at": "",
        "bound_at": "",
        "ended_at": "",
    },
)


@VIEW.on("disk-lease.requested")
def requested(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        lease_id=fact.id,
        **{name: d[name] for name in ("disk", "sandbox_id", "node_id", "mount_path", "read_only", "deadline")},
        created_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("disk-lease.bound")
def bound(item: Item, fact: Fact) -> None:
    item.update(status="BOUND", epoch=fact.data["epoch"], bound_at=fact.time)


@VIEW.update("disk-lease.released")
def released(item: Item, fact: Fact) -> None:
    item.update(status="RELEASED", reason=fact.data["reason"], ended_at=fact.time)


@VIEW.update("disk-lease.failed")
def failed(item: Item, fact: Fact) -> None:
    failure = fact.data["failure"]
    item.update(status="FAILED", last_error=failure["message"], error_code=failure["code"], ended_at=fact.time)
