"""``pools``: sandboxes of a template that are kept running, how many there are and wait, and what keeps a pool from more."""

from __future__ import annotations

from typing import Any, Final

from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

VIEW: Final = View(
    "pools",
    noun="pool",
    key="template_id",
    counted="state",
    fields={
        "template_id": "",
        "state": "ACTIVE",
        "desired": 0,
        "maximum": 0,
        "warm": True,
        "idle_s": None,
        "current": 0,
        "ready": 0,
        "members": {},
        "crashes": 0,
        "cooldown_until": None,
        "handed_over": 0,
        "missed": 0,
        "created_at": "",
        "updated_at": "",
    },
)


@VIEW.on("pool.created")
def created(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, VIEW.item(template_id=fact.id, created_at=fact.time, updated_at=fact.time, **fact.data["settings"]))


@VIEW.update("pool.configured")
def configured(item: Item, fact: Fact) -> None:
    item.update(state="ACTIVE", updated_at=fact.time, **fact.data["settings"])


@VIEW.update("pool.member-added")
def added(item: Item, fact: Fact) -> None:
    _member(item, fact, {"number": fact.data["number"], "state": "starting"})


@VIEW.update("pool.member-ready")
def ready(item: Item, fact: Fact) -> None:
    _member(item, fact, {**item["members"].get(fact.data["sandbox_id"], {}), "state": "ready"})


@VIEW.update("pool.member-retired")
def retired(item: Item, fact: Fact) -> None:
    item["desired"] = fact.data["desired"]
    _member(item, fact, {**item["members"].get(fact.data["sandbox_id"], {}), "state": "leaving"})


@VIEW.update("pool.member-left")
def left(item: Item, fact: Fact) -> None:
    item.update(crashes=fact.data["crashes"], cooldown_until=fact.data["cooldown_until"])
    _member(item, fact, None)


@VIEW.update("pool.handed-over")
def handed_over(item: Item, fact: Fact) -> None:
    item["handed_over"] += 1
    _member(item, fact, None)


@VIEW.update("pool.missed")
def missed(item: Item, _fact: Fact) -> None:
    item["missed"] += 1


@VIEW.update("pool.recovered")
def recovered(item: Item, fact: Fact) -> None:
    item.update(crashes=0, cooldown_until=None, updated_at=fact.time)


@VIEW.update("pool.delete-requested")
def delete_requested(item: Item, fact: Fact) -> None:
    item.update(state="DELETING", desired=0, updated_at=fact.time)


@VIEW.update("pool.deleted")
def deleted(item: Item, fact: Fact) -> None:
    item.update(state="GONE", updated_at=fact.time)


def _member(item: Item, fact: Fact, member: dict[str, Any] | None) -> None:
    """A member as it is now, None: it is no member any more."""
    members = {name: known for name, known in item["members"].items() if name != fact.data["sandbox_id"]}
    if member is not None:
        members[fact.data["sandbox_id"]] = member
    waiting = sum(known["state"] == "ready" for known in members.values())
    item.update(members=members, current=len(members), ready=waiting, updated_at=fact.time)
