"""``nodes``: the machines, what they run and have, and what sandboxes use of them (contract.md).

``used`` is what the sandboxes that are not DEAD were promised, over all projects. Heartbeats are not events: ``last_seen`` is as old as
the node's last transition and ``storage.usage_pct`` as its last mode, until an answer about now adds what was heard
(``projections/presence.py``).
"""

from __future__ import annotations

from typing import Final

from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Capacity, Versions
from domain.nodes.placement import Overcommit
from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

PLACED: Final = "placed"
"""Kind of the notes that say what a sandbox uses, and where."""

VIEW: Final = View(
    "nodes",
    noun="node",
    schema=3,
    key="node_id",
    shared=True,
    counted="status",
    indexed=("status",),
    fields={
        "node_id": "",
        "status": "offline",
        "liveness": "OFFLINE",
        "scheduling": "OPEN",
        "drivers": [],
        "versions": Versions().model_dump(),
        "capacity": Capacity().model_dump(),
        "used": Capacity().model_dump(),
        "reported": None,
        "storage": {"usage_pct": None, "mode": "unknown"},
        "roles": [],
        "labels": {},
        "overcommit": Overcommit().model_dump(),
        "host": {},
        "note": "",
        "enrolled_at": "",
        "last_seen": None,
    },
)


def _became(item: Item, fact: Fact, *, liveness: str | None = None, scheduling: str | None = None) -> None:
    item["liveness"] = liveness or item["liveness"]
    item["scheduling"] = scheduling or item["scheduling"]
    online = item["liveness"] == "ONLINE"
    item["status"] = {"OPEN": "ready"}.get(item["scheduling"], item["scheduling"].lower()) if online else item["liveness"].lower()
    if liveness == "ONLINE":
        item["last_seen"] = fact.time


@VIEW.on("node.enrolled")
def enrolled(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, VIEW.item(node_id=fact.id, note=fact.data["note"], enrolled_at=fact.time))


@VIEW.update("node.re-enrolled")
def re_enrolled(item: Item, fact: Fact) -> None:
    _became(item, fact, liveness="OFFLINE", scheduling="OPEN")
    item.update(note=fact.data["note"], enrolled_at=fact.time)


@VIEW.update("node.agent-started")
def agent_started(item: Item, fact: Fact) -> None:
    item["last_seen"] = fact.time


@VIEW.update("node.described")
def described(item: Item, fact: Fact) -> None:
    item.update({name: fact.data[name] for name in ("drivers", "capacity", "roles", "host")}, last_seen=fact.time)


@VIEW.update("node.versions-changed")
def versions_changed(item: Item, fact: Fact) -> None:
    item.update(versions=fact.data["versions"], last_seen=fact.time)


@VIEW.update("node.came-online")
def came_online(item: Item, fact: Fact) -> None:
    _became(item, fact, liveness="ONLINE")


@VIEW.update("node.went-offline")
def went_offline(item: Item, fact: Fact) -> None:
    _became(item, fact, liveness="OFFLINE")
    item["last_seen"] = fact.data["last_seen"] or item["last_seen"]
    item["storage"] = {"usage_pct": None, "mode": "unknown"}


@VIEW.update("node.evicted")
def evicted(item: Item, fact: Fact) -> None:
    _became(item, fact, liveness="EVICTED")
    item["storage"] = {"usage_pct": None, "mode": "unknown"}


@VIEW.update("node.cordoned")
def cordoned(item: Item, fact: Fact) -> None:
    _became(item, fact, scheduling="CORDONED")


@VIEW.update("node.uncordoned")
def uncordoned(item: Item, fact: Fact) -> None:
    _became(item, fact, scheduling="OPEN")


@VIEW.update("node.draining")
def draining(item: Item, fact: Fact) -> None:
    _became(item, fact, scheduling="DRAINING")


@VIEW.update("node.configured")
def configured(item: Item, fact: Fact) -> None:
    item.update(labels=fact.data["labels"], overcommit=fact.data["overcommit"])


@VIEW.update("node.storage-mode-changed")
def storage_mode_changed(item: Item, fact: Fact) -> None:
    item["storage"] = {"usage_pct": fact.data["pct"], "mode": fact.data["mode"]}


@VIEW.on("sandbox.created")
def placed(state: State, fact: Fact) -> None:
    recipe = fact.data["spec"]["recipe"]
    share = {"cpu": recipe["cpu"], "memory_mb": recipe["memory_mb"], "disk_mb": recipe["disk_mb"], "sandboxes": 1}
    state.put(fact.project, fact.id, {"node_id": fact.data["node_id"], **share}, kind=PLACED)
    _use(state, fact.data["node_id"], share, 1)


@VIEW.on("sandbox.limits-changed")
def limited(state: State, fact: Fact) -> None:
    share = state.get(fact.project, fact.id, kind=PLACED)
    if share is not None:
        new = {**share, "cpu": fact.data["limits"]["cpu"], "memory_mb": fact.data["limits"]["memory_mb"]}
        _use(state, share["node_id"], share, -1)
        _use(state, share["node_id"], new, 1)
        state.put(fact.project, fact.id, new, kind=PLACED)


@VIEW.on("sandbox.destroyed", "sandbox.start-failed")
def gone(state: State, fact: Fact) -> None:
    share = state.get(fact.project, fact.id, kind=PLACED)
    if share is not None:
        state.delete(fact.project, fact.id, kind=PLACED)
        _use(state, share["node_id"], share, -1)


def _use(state: State, node_id: str, share: Item, sign: int) -> None:
    """Cores are summed in thousandths: fractions would leave crumbs behind."""
    node = state.edit(SYSTEM_PROJECT, node_id)
    if node is None:
        return
    used = node["used"]
    node["used"] = {
        "cpu": (round(used["cpu"] * 1000) + sign * round(share["cpu"] * 1000)) / 1000,
        **{name: used[name] + sign * share[name] for name in ("memory_mb", "disk_mb", "sandboxes")},
    }
