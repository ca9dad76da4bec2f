"""``usage``: how long each sandbox ran and what it was promised meanwhile, for accounts. Paused time does not count.

``measured`` is what it uses at this moment, in answers about now (``projections/used.py``): samples are not events.

``running_s`` is the time of all ended runs; while ``running_since`` is set, the time since then comes on top.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "usage",
    noun="sandbox",
    schema=2,
    key="sandbox_id",
    indexed=("node_id", "template_id"),
    fields={
        "sandbox_id": "",
        "template_id": "",
        "node_id": "",
        "cpu": 0,
        "memory_mb": 0,
        "disk_mb": 0,
        "running_s": 0,
        "running_since": None,
        "commands": 0,
        "created_at": "",
        "ended_at": None,
        "measured": None,
    },
)


@VIEW.on("sandbox.created")
def created(state: State, fact: Fact) -> None:
    spec = fact.data["spec"]
    item = VIEW.item(
        sandbox_id=fact.id,
        template_id=spec["template_id"],
        node_id=fact.data["node_id"],
        cpu=spec["recipe"]["cpu"],
        memory_mb=spec["recipe"]["memory_mb"],
        disk_mb=spec["recipe"]["disk_mb"],
        created_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("sandbox.started", "sandbox.resumed", "sandbox.rolled-back")
def runs(item: Item, fact: Fact) -> None:
    item["running_since"] = item["running_since"] or fact.time


@VIEW.update("sandbox.paused", "sandbox.stop-requested", "sandbox.delete-requested", "sandbox.exited")
def stands(item: Item, fact: Fact) -> None:
    if item["running_since"] is not None:
        ran = datetime.fromisoformat(fact.time) - datetime.fromisoformat(item["running_since"])
        item["running_s"] = round(item["running_s"] + max(ran.total_seconds(), 0), 3)
        item["running_since"] = None


@VIEW.update("sandbox.rollback-failed")
def lost(item: Item, fact: Fact) -> None:
    if fact.data["fatal"]:
        stands(item, fact)


@VIEW.update("sandbox.destroyed", "sandbox.start-failed")
def ended(item: Item, fact: Fact) -> None:
    stands(item, fact)
    item["ended_at"] = fact.time


@VIEW.update("sandbox.limits-changed")
def limits_changed(item: Item, fact: Fact) -> None:
    item.update({name: fact.data["limits"][name] for name in ("cpu", "memory_mb")})


@VIEW.update("sandbox.executed")
def executed(item: Item, _fact: Fact) -> None:
    item["commands"] += 1
