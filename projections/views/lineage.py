"""``lineage``: who came from whom, template → sandbox → snapshot → sandbox …, as one item per thing that names its parent.

A sandbox comes from a template or a snapshot, a snapshot from the sandbox it was taken of. What is gone stays as long as something living
comes from it, with ``gone`` set, so that the way back to the beginning is whole; then it goes, and so does what only led to it.
"""

from __future__ import annotations

from typing import Any, Final

from projections.facts import Fact
from projections.state import State
from projections.view import View

VIEW: Final = View(
    "lineage",
    noun="lineage",
    key="id",
    counted="kind",
    indexed=("kind", "parent_id"),
    fields={
        "id": "",
        "kind": "",
        "name": "",
        "parent_id": None,
        "children": 0,
        "gone": False,
        "created_at": "",
    },
)


def _add(state: State, fact: Fact, kind: str, name: str, parent: str | None) -> None:
    above = None if parent is None else state.edit(fact.project, parent)
    if above is not None:
        above["children"] += 1
    item = VIEW.item(id=fact.id, kind=kind, name=name, parent_id=parent, created_at=fact.time)
    state.put(fact.project, fact.id, item)


def _end(state: State, fact: Fact) -> None:
    """It is gone: from now on it is only a part of others' pasts."""
    item = state.edit(fact.project, fact.id)
    if item is not None:
        item["gone"] = True
        _prune(state, fact.project, item)


def _prune(state: State, project: str, item: dict[str, Any]) -> None:
    """Away with what is gone and leads to nothing, upwards."""
    while item["gone"] and not item["children"]:
        state.delete(project, item["id"])
        above = None if item["parent_id"] is None else state.edit(project, item["parent_id"])
        if above is None:
            return
        above["children"] -= 1
        item = above


@VIEW.on("template.created")
def template_created(state: State, fact: Fact) -> None:
    _add(state, fact, "template", fact.data["alias"] or "", None)


@VIEW.on("sandbox.created")
def sandbox_created(state: State, fact: Fact) -> None:
    spec = fact.data["spec"]
    _add(state, fact, "sandbox", spec["name"], spec["snapshot_id"] or spec["template_id"])


@VIEW.on("snapshot.created")
def snapshot_created(state: State, fact: Fact) -> None:
    _add(state, fact, "snapshot", fact.data["name"], fact.data["sandbox_id"])


@VIEW.on("template.deleted", "sandbox.destroyed", "sandbox.start-failed", "snapshot.deleted")
def gone(state: State, fact: Fact) -> None:
    _end(state, fact)
