"""``sandboxes``: every run of a workload, from its request to its end (contract.md; reference/miren-sandbox.md §1.7).

``provisioning`` is the state of the saga that brings it up, with what it could not undo: how a BLOCKED one is found. ``known``: false while
its node is silent: all the rest is then what was known last, and nobody says that it is so now (design.md §10.5).
"""

from __future__ import annotations

from typing import Any, Final

from domain.kernel.ids import SYSTEM_PROJECT
from projections.facts import Fact
from projections.state import State
from projections.store import Item
from projections.view import View

SILENT: Final = "silent"
"""Kind of the notes that say which nodes are not heard."""

VIEW: Final = View(
    "sandboxes",
    noun="sandbox",
    schema=2,
    key="sandbox_id",
    counted="state",
    indexed=("state", "node_id", "template_id", "name"),
    lookups=("node_id",),
    fields={
        "sandbox_id": "",
        "name": "",
        "state": "PENDING",
        "known": True,
        "reason": None,
        "template_id": "",
        "snapshot_id": None,
        "node_id": "",
        "placed": None,
        "pool": None,
        "driver": None,
        "address": "",
        "ports": [],
        "generation": 0,
        "operation": None,
        "exit": None,
        "crashes": 0,
        "restart_at": None,
        "error": None,
        "cpu": 0,
        "memory_mb": 0,
        "disk_mb": 0,
        "pids": 0,
        "ttl": None,
        "labels": {},
        "provisioning": {"state": "RUNNING", "attempt": 1, "failed_step": "", "uncompensated": []},
        "job_id": None,
        "created_at": "",
        "started_at": None,
        "last_activity": None,
        "ends_at": None,
        "ended_at": None,
    },
)


@VIEW.on("sandbox.created")
def created(state: State, fact: Fact) -> None:
    data = fact.data
    spec, node_id = data["spec"], data["node_id"]
    recipe = spec["recipe"]
    item = VIEW.item(
        sandbox_id=fact.id,
        name=spec["name"],
        template_id=spec["template_id"],
        snapshot_id=spec["snapshot_id"],
        node_id=node_id,
        placed=data["placed"],
        pool=data["pool"],
        driver=spec["driver"],
        ports=[{"port": port, "address": "", "status": "declared"} for port in recipe["ports"]],
        cpu=recipe["cpu"],
        memory_mb=recipe["memory_mb"],
        disk_mb=recipe["disk_mb"],
        pids=recipe["pids"],
        ttl=data["ttl"],
        labels=spec["labels"],
        job_id=data["job_id"],
        created_at=fact.time,
        known=state.get(SYSTEM_PROJECT, node_id, kind=SILENT) is None,
    )
    state.put(fact.project, fact.id, item)


@VIEW.update("sandbox.starting")
def starting(item: Item, _fact: Fact) -> None:
    item["state"] = "NOT_READY"


@VIEW.update("sandbox.started")
def started(item: Item, fact: Fact) -> None:
    _running(item, fact)
    item.update(generation=fact.data["generation"], started_at=fact.time)


@VIEW.update("sandbox.resumed")
def resumed(item: Item, fact: Fact) -> None:
    _running(item, fact)


@VIEW.update("sandbox.rolled-back")
def rolled_back(item: Item, fact: Fact) -> None:
    _running(item, fact)
    item.update(generation=fact.data["generation"], snapshot_id=fact.data["snapshot_id"])


def _running(item: Item, fact: Fact) -> None:
    data = fact.data
    item.update(
        state="RUNNING",
        last_activity=fact.time,
        operation=None,
        driver=data["driver"] or item["driver"],
        address=data["address"],
        ports=data["ports"] or item["ports"],
        ends_at=data["ends_at"],
    )


@VIEW.update("sandbox.ports-changed")
def ports_changed(item: Item, fact: Fact) -> None:
    item["ports"] = fact.data["ports"]


@VIEW.update("sandbox.start-failed")
def start_failed(item: Item, fact: Fact) -> None:
    item.update(state="DEAD", known=True, reason=fact.data["reason"], error=fact.data["failure"], operation=None, ended_at=fact.time)


@VIEW.update("sandbox.operation-begun")
def operation_begun(item: Item, fact: Fact) -> None:
    item["operation"] = fact.data["operation"]


@VIEW.update("sandbox.snapshot-ended", "sandbox.operation-failed", "sandbox.operation-expired")
def operation_ended(item: Item, _fact: Fact) -> None:
    item["operation"] = None


@VIEW.update("sandbox.limits-changed")
def limits_changed(item: Item, fact: Fact) -> None:
    item.update(operation=None, **fact.data["limits"])


@VIEW.update("sandbox.crashed")
def crashed(item: Item, fact: Fact) -> None:
    """``crashes`` in a row; it comes up again at ``restart_at``. Nothing serves its ports until then."""
    item.update({name: fact.data[name] for name in ("exit", "crashes", "restart_at", "operation")}, error=fact.data["failure"])
    item["ports"] = [{**port, "status": "closed" if port["status"] == "listening" else port["status"]} for port in item["ports"]]


@VIEW.update("sandbox.restarted")
def restarted(item: Item, fact: Fact) -> None:
    """Its time to live has gone on, and nobody has used it."""
    data = fact.data
    item.update(operation=None, driver=data["driver"] or item["driver"], address=data["address"], ports=data["ports"] or item["ports"])
    item.update(generation=data["generation"], restart_at=None, error=None)


@VIEW.update("sandbox.rollback-failed")
def rollback_failed(item: Item, fact: Fact) -> None:
    item["operation"] = None
    if fact.data["fatal"]:
        item.update(state="STOPPED", reason="rollback_failed", error=fact.data["failure"], ends_at=None)


@VIEW.update("sandbox.paused")
def paused(item: Item, _fact: Fact) -> None:
    item.update(state="PAUSED", operation=None, ends_at=None)


@VIEW.update("sandbox.ttl-set")
def ttl_set(item: Item, fact: Fact) -> None:
    item.update(ttl=fact.data["ttl"], ends_at=fact.data["ends_at"])


@VIEW.update("sandbox.touched")
def touched(item: Item, fact: Fact) -> None:
    item.update(ends_at=fact.data["ends_at"], last_activity=fact.time)


@VIEW.update("sandbox.handed-over")
def handed_over(item: Item, fact: Fact) -> None:
    d = fact.data
    item.update(pool=None, labels=d["labels"], ttl=d["ttl"], ends_at=d["ends_at"], last_activity=fact.time)


@VIEW.update("sandbox.ttl-expired")
def ttl_expired(item: Item, _fact: Fact) -> None:
    item["ends_at"] = None


@VIEW.update("sandbox.stop-requested", "sandbox.delete-requested")
def stop_requested(item: Item, fact: Fact) -> None:
    _stopped(item, fact)


@VIEW.update("sandbox.exited")
def exited(item: Item, fact: Fact) -> None:
    _stopped(item, fact)
    item["exit"] = fact.data["exit"]


@VIEW.update("sandbox.destroyed")
def destroyed(item: Item, fact: Fact) -> None:
    _stopped(item, fact)
    item.update(state="DEAD", known=True, exit=fact.data["exit"] or item["exit"], ended_at=fact.time)


@VIEW.on("sandbox.forgotten")
def forgotten(state: State, fact: Fact) -> None:
    """Dead for an hour. An answer with ``as_of``, the views of what it did, and the log still have it."""
    state.delete(fact.project, fact.id)


def _stopped(item: Item, fact: Fact) -> None:
    item.update(restart_at=None, state="STOPPED", reason=item["reason"] or fact.data["reason"], operation=None, ends_at=None)


@VIEW.on("node.went-offline")
def node_silent(state: State, fact: Fact) -> None:
    state.put(fact.project, fact.id, {}, kind=SILENT)
    _known(state, fact.id, known=False)


@VIEW.on("node.came-online", "node.evicted")
def node_heard(state: State, fact: Fact) -> None:
    """An evicted node's sandboxes are dead by decision."""
    state.delete(fact.project, fact.id, kind=SILENT)
    _known(state, fact.id, known=True)


def _known(state: State, node_id: str, *, known: bool) -> None:
    for project, sandbox_id in state.find({"node_id": node_id}):
        item = state.get(project, sandbox_id)
        if item is not None and item["state"] != "DEAD" and item["known"] is not known:
            state.put(project, sandbox_id, {**item, "known": known})


@VIEW.update("provisioning.retried")
def provisioning_retried(item: Item, fact: Fact) -> None:
    _provisioning(item, attempt=fact.data["attempt"])
    if item["provisioning"]["state"] == "BLOCKED":
        _provisioning(item, state="UNDOING")


@VIEW.update("provisioning.completed")
def provisioning_completed(item: Item, _fact: Fact) -> None:
    _provisioning(item, state="COMPLETED")


@VIEW.update("provisioning.failed")
def provisioning_failed(item: Item, fact: Fact) -> None:
    left = fact.data["uncompensated"]
    _provisioning(item, state="UNDOING" if left else "FAILED", failed_step=fact.data["failed_step"], uncompensated=left)


@VIEW.update("provisioning.undo-failed")
def provisioning_undo_failed(item: Item, fact: Fact) -> None:
    _provisioning(item, state="BLOCKED" if fact.data["blocked"] else "UNDOING", uncompensated=fact.data["uncompensated"])


@VIEW.update("provisioning.blocked")
def provisioning_blocked(item: Item, fact: Fact) -> None:
    _provisioning(item, state="BLOCKED", uncompensated=fact.data["uncompensated"])


@VIEW.update("provisioning.superseded")
def provisioning_superseded(item: Item, _fact: Fact) -> None:
    _provisioning(item, state="SUPERSEDED")


@VIEW.update("provisioning.abandoned")
def provisioning_abandoned(item: Item, _fact: Fact) -> None:
    _provisioning(item, state="ABANDONED")


def _provisioning(item: Item, **values: Any) -> None:
    """The provisioning has its sandbox's id. Both begin in one atomic batch, so there is no event for its beginning here."""
    item["provisioning"] = {**item["provisioning"], **values}
