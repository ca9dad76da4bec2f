"""``templates``: what sandboxes start from, by id or by alias (reference/cubesandbox.md §1.2, §4.5).

``alias`` is the name that resolves to the template, not one that it is still to get: what the view shows can be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from domain.templates.alias import RESERVED_PREFIXES
from projections.facts import Fact
from projections.state import State
from projections.store import Item, Reader
from projections.view import View

ALIAS: Final = "alias"
"""Kind of the notes that say which template a name resolves to."""


def resolve(reader: Reader, project: str, name: str) -> str:
    """The template id that an id or alias means; an unknown name means itself, and is then not found. ``reader`` reads this view."""
    if name.startswith(RESERVED_PREFIXES):
        return name
    held = reader.get(ALIAS, project, name)
    return name if held is None else str(held["template_id"])


VIEW: Final = View(
    "templates",
    noun="template",
    key="template_id",
    counted="status",
    indexed=("status", "alias", "artifact_id"),
    fields={
        "template_id": "",
        "alias": None,
        "status": "PENDING",
        "artifact_id": None,
        "image": "",
        "image_digest": None,
        "origin_sandbox_id": None,
        "recipe": None,
        "replicas": {"ready": 0, "failed": 0, "total": 0},
        "job_id": "",
        "created_at": "",
        "updated_at": "",
        "last_error": None,
    },
)


@VIEW.on("alias.claimed")
def resolves(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, {"template_id": fact.data["template_id"]}, kind=ALIAS)


@VIEW.on("alias.released")
def resolves_no_more(state: State, fact: Fact) -> None:
    state.delete(fact.project, fact.id, kind=ALIAS)


@VIEW.on("template.created")
def created(state: State, fact: Fact) -> None:
    request = fact.data["request"]
    item = VIEW.item(
        template_id=fact.id,
        image=request["image"],
        origin_sandbox_id=request["origin_sandbox_id"],
        job_id=fact.data["job_id"],
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


def _set(item: Item, fact: Fact, values: Mapping[str, Any]) -> None:
    item.update(values, updated_at=fact.time)


@VIEW.update("template.job-begun")
def job_begun(item: Item, fact: Fact) -> None:
    _set(item, fact, {"job_id": fact.data["job_id"]})


@VIEW.update("template.artifact-bound")
def artifact_bound(item: Item, fact: Fact) -> None:
    _set(item, fact, {"artifact_id": fact.data["artifact_id"], "image_digest": fact.data["image_digest"]})


@VIEW.update("template.recipe-set")
def recipe_set(item: Item, fact: Fact) -> None:
    _set(item, fact, {"recipe": fact.data["recipe"]})


@VIEW.update("template.settled")
def settled(item: Item, fact: Fact) -> None:
    d = fact.data
    counts = {"ready": d["ready"], "failed": d["failed"], "total": d["total"]}
    _set(item, fact, {"status": d["status"], "replicas": counts, "last_error": d["error"]})


@VIEW.update("template.failed")
def failed(item: Item, fact: Fact) -> None:
    _set(item, fact, {"status": fact.data["status"], "last_error": fact.data["error"]})


@VIEW.update("template.alias-claimed")
def alias_claimed(item: Item, fact: Fact) -> None:
    _set(item, fact, {"alias": fact.data["alias"]})


@VIEW.update("template.alias-lost")
def alias_lost(item: Item, fact: Fact) -> None:
    _set(item, fact, {"alias": None})


@VIEW.update("template.delete-requested")
def delete_requested(item: Item, fact: Fact) -> None:
    _set(item, fact, {"status": "DELETING"})


@VIEW.update("template.delete-failed")
def delete_failed(item: Item, fact: Fact) -> None:
    _set(item, fact, {"status": "FAILED", "last_error": fact.data["error"]})


@VIEW.on("template.deleted")
def deleted(state: State, fact: Fact) -> None:
    state.delete(fact.project, fact.id)
