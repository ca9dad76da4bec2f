"""``rollouts``: nodes that are to run other versions, how far each of them is, and what holds a rollout up."""

from __future__ import annotations

from typing import Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "rollouts",
    noun="rollout",
    key="rollout_id",
    shared=True,
    counted="state",
    fields={
        "rollout_id": "",
        "state": "RUNNING",
        "versions": {},
        "at_once": 1,
        "stop_after_s": None,
        "nodes": {},
        "done": 0,
        "total": 0,
        "held_by": [],
        "error": None,
        "created_at": "",
        "updated_at": "",
    },
)


@VIEW.on("rollout.begun")
def begun(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        rollout_id=fact.id,
        versions=d["versions"],
        at_once=d["at_once"],
        stop_after_s=d["stop_after_s"],
        nodes=dict.fromkeys(d["nodes"], "WAITING"),
        total=len(d["nodes"]),
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("rollout.node-moved")
def node_moved(item: Item, fact: Fact) -> None:
    item["nodes"][fact.data["node_id"]] = fact.data["step"]
    item.update(done=sum(step in {"DONE", "SKIPPED"} for step in item["nodes"].values()), updated_at=fact.time)


@VIEW.update("rollout.held")
def held(item: Item, fact: Fact) -> None:
    item.update(held_by=fact.data["templates"], updated_at=fact.time)


@VIEW.update("rollout.completed", "rollout.cancelled")
def ended(item: Item, fact: Fact) -> None:
    item.update(state=fact.type.partition(".")[2].upper(), held_by=[], updated_at=fact.time)


@VIEW.update("rollout.failed")
def failed(item: Item, fact: Fact) -> None:
    d = fact.data
    item.update(state="FAILED", held_by=[], error=f"{d['template_id']} on {d['node_id']}: {d['error']}", updated_at=fact.time)
