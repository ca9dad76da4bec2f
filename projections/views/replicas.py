"""``replicas``: templates on nodes, with the versions they are bound to and whether those still fit (reference/cubesandbox.md §1.3, §6)."""

from __future__ import annotations

from typing import Any, Final

from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Versions
from domain.templates.compat import Compat, Policy, judge
from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

NODE: Final = "node"
"""Kind of the notes that say what a node runs, and whether it is heard."""

POLICY: Final = "policy"
"""Kind of the notes that say by which compat policy a template's replicas are judged, where that is not the strict one."""

REMOVED: Final = "removed"
"""Kind of replicas that nothing is left of: a redo makes the same one again."""

VIEW: Final = View(
    "replicas",
    noun="replica",
    key="replica_id",
    counted="status",
    indexed=("template_id", "status"),
    lookups=("node_id",),
    fields={
        "replica_id": "",
        "template_id": "",
        "node_id": "",
        "status": "PENDING",
        "phase": "PENDING",
        "artifact_id": None,
        "job_id": "",
        "driver": None,
        "guest_image_version": "",
        "agent_version": "",
        "kernel_version": "",
        "compat": Compat.UNKNOWN.value,
        "cleanup_required": False,
        "last_error": None,
        "last_error_phase": None,
        "created_at": "",
        "updated_at": "",
    },
)


def _judge(state: State, project: str, item: Item, node: Item) -> str:
    bound = Versions(guest_image=item["guest_image_version"], agent=item["agent_version"], kernel=item["kernel_version"])
    note = state.get(project, item["template_id"], kind=POLICY)
    return judge(bound, Versions(**node["versions"]), node["online"], Policy.STRICT if note is None else note["policy"]).value


def _node(state: State, node_id: str) -> Item:
    return state.get(SYSTEM_PROJECT, node_id, kind=NODE) or {"versions": Versions().model_dump(), "online": False}


def _rejudge(state: State, fact: Fact, **changed: Any) -> None:
    """A node is another than before: so may be the judgement of everything on it."""
    node = {**_node(state, fact.id), **changed}
    state.put(SYSTEM_PROJECT, fact.id, node, kind=NODE)
    for project, replica_id in state.find({"node_id": fact.id}):
        item = state.get(project, replica_id)
        if item is not None and (compat := _judge(state, project, item, node)) != item["compat"]:
            state.put(project, replica_id, {**item, "compat": compat, "updated_at": fact.time})


@VIEW.on("node.versions-changed")
def versions_changed(state: State, fact: Fact) -> None:
    _rejudge(state, fact, versions=fact.data["versions"])


@VIEW.on("node.came-online")
def came_online(state: State, fact: Fact) -> None:
    _rejudge(state, fact, online=True)


@VIEW.on("node.went-offline", "node.evicted", "node.re-enrolled")
def went_offline(state: State, fact: Fact) -> None:
    _rejudge(state, fact, online=False)


@VIEW.on("template.compat-policy-set")
def policy_set(state: State, fact: Fact) -> None:
    """Judged otherwise: everything of that template, and what comes of it later."""
    state.put(fact.project, fact.id, {"policy": fact.data["policy"]}, kind=POLICY)
    for project, replica_id in state.find({"template_id": fact.id}, project=fact.project):
        item = state.get(project, replica_id)
        if item is not None and (compat := _judge(state, project, item, _node(state, item["node_id"]))) != item["compat"]:
            state.put(project, replica_id, {**item, "compat": compat, "updated_at": fact.time})


@VIEW.on("template.deleted")
def template_deleted(state: State, fact: Fact) -> None:
    if state.get(fact.project, fact.id, kind=POLICY) is not None:
        state.delete(fact.project, fact.id, kind=POLICY)


@VIEW.on("replica.created")
def created(state: State, fact: Fact) -> None:
    d = fact.data
    item = VIEW.item(
        replica_id=fact.id,
        template_id=d["template_id"],
        node_id=d["node_id"],
        artifact_id=d["artifact_id"],
        job_id=d["job_id"],
        created_at=fact.time,
        updated_at=fact.time,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("replica.distributing")
def distributing(item: Item, fact: Fact) -> None:
    item.update(status="PENDING", phase="DISTRIBUTING", updated_at=fact.time)


@VIEW.update("replica.distributed")
def distributed(item: Item, fact: Fact) -> None:
    item.update(status="PENDING", phase="DISTRIBUTED", updated_at=fact.time)


@VIEW.update("replica.preparing")
def preparing(item: Item, fact: Fact) -> None:
    item.update(status="PENDING", phase="SNAPSHOTTING", updated_at=fact.time)


@VIEW.on("replica.ready")
def ready(state: State, fact: Fact) -> None:
    item = state.edit(fact.project, fact.id)
    if item is not None:
        item.update(
            status="READY",
            phase="READY",
            driver=fact.data["driver"],
            cleanup_required=False,
            last_error=None,
            last_error_phase=None,
            updated_at=fact.time,
        )
        _bind(state, fact.project, item, fact.data["versions"])


@VIEW.on("replica.baseline-adopted")
def baseline_adopted(state: State, fact: Fact) -> None:
    item = state.edit(fact.project, fact.id)
    if item is not None:
        item["updated_at"] = fact.time
        _bind(state, fact.project, item, fact.data["versions"])


def _bind(state: State, project: str, item: Item, versions: dict[str, str]) -> None:
    item.update(guest_image_version=versions["guest_image"], agent_version=versions["agent"], kernel_version=versions["kernel"])
    item["compat"] = _judge(state, project, item, _node(state, item["node_id"]))


@VIEW.update("replica.failed")
def failed(item: Item, fact: Fact) -> None:
    """The versions that it was bound to stay (appendix B there)."""
    d = fact.data
    item.update(
        status="FAILED",
        phase="FAILED",
        cleanup_required=d["cleanup_required"],
        last_error=d["error"],
        last_error_phase=d["phase"],
        updated_at=fact.time,
    )


@VIEW.on("replica.redone")
def redone(state: State, fact: Fact) -> None:
    removed_one = state.get(fact.project, fact.id, kind=REMOVED)
    if removed_one is not None:
        state.delete(fact.project, fact.id, kind=REMOVED)
        compat = _judge(state, fact.project, removed_one, _node(state, removed_one["node_id"]))
        state.put(fact.project, fact.id, {**removed_one, "compat": compat})
    item = state.edit(fact.project, fact.id)
    if item is not None:
        d = fact.data
        item.update(status="PENDING", phase=d["from_phase"], job_id=d["job_id"], artifact_id=d["artifact_id"], updated_at=fact.time)


@VIEW.update("replica.cleaning")
def cleaning(item: Item, fact: Fact) -> None:
    item.update(status="PENDING", phase="CLEANING", job_id=fact.data["job_id"], updated_at=fact.time)


@VIEW.on("replica.removed")
def removed(state: State, fact: Fact) -> None:
    item = state.get(fact.project, fact.id)
    if item is not None:
        state.put(fact.project, fact.id, item, kind=REMOVED)
    state.delete(fact.project, fact.id)
