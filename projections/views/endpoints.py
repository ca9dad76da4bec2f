"""``endpoints``: where the ports of running sandboxes are reached. An item per port; they go when the sandbox stops."""

from __future__ import annotations

from typing import Any, Final

from projections.facts import Fact
from projections.state import State
from projections.view import View

PORTS: Final = "ports"
"""Kind of the notes that say which endpoints a sandbox has."""

VIEW: Final = View(
    "endpoints",
    noun="endpoint",
    key="endpoint_id",
    counted="status",
    indexed=("sandbox_id", "node_id"),
    fields={
        "endpoint_id": "",
        "sandbox_id": "",
        "name": "",
        "node_id": "",
        "port": 0,
        "address": "",
        "bound": None,
        "status": "declared",
        "since": "",
    },
)


@VIEW.on("sandbox.created")
def created(state: State, fact: Fact) -> None:
    note = {"name": fact.data["spec"]["name"], "node_id": fact.data["node_id"], "ports": []}
    state.put(fact.project, fact.id, note, kind=PORTS)


@VIEW.on("sandbox.started", "sandbox.resumed", "sandbox.rolled-back", "sandbox.restarted")
def open_ports(state: State, fact: Fact) -> None:
    note = state.edit(fact.project, fact.id, kind=PORTS)
    if note is None or not (note["ports"] or fact.data["ports"]):
        return
    _close(state, fact, note["ports"])
    note["ports"] = [port["port"] for port in fact.data["ports"]]
    for port in fact.data["ports"]:
        item = VIEW.item(
            endpoint_id=_endpoint(fact.id, port),
            sandbox_id=fact.id,
            name=note["name"],
            node_id=note["node_id"],
            port=port["port"],
            address=port["address"] or fact.data["address"],
            bound=port.get("bound"),
            status=port["status"],
            since=fact.time,
        )
        state.put(fact.project, item["endpoint_id"], item)


@VIEW.on("sandbox.ports-changed")
def changed(state: State, fact: Fact) -> None:
    """``since`` is that of the status."""
    for port in fact.data["ports"]:
        item = state.edit(fact.project, _endpoint(fact.id, port))
        if item is not None and item["status"] != port["status"]:
            item.update(status=port["status"], since=fact.time)


def _endpoint(sandbox_id: str, port: dict[str, Any]) -> str:
    return f"{sandbox_id}_{port['port']}"


@VIEW.on("sandbox.paused", "sandbox.stop-requested", "sandbox.delete-requested", "sandbox.exited", "sandbox.crashed")
def close_ports(state: State, fact: Fact) -> None:
    note = state.get(fact.project, fact.id, kind=PORTS)
    if note is not None and note["ports"]:
        _close(state, fact, note["ports"])
        state.put(fact.project, fact.id, {**note, "ports": []}, kind=PORTS)


@VIEW.on("sandbox.destroyed", "sandbox.start-failed")
def gone(state: State, fact: Fact) -> None:
    note = state.get(fact.project, fact.id, kind=PORTS)
    if note is not None:
        _close(state, fact, note["ports"])
        state.delete(fact.project, fact.id, kind=PORTS)


@VIEW.on("sandbox.rollback-failed")
def lost(state: State, fact: Fact) -> None:
    if fact.data["fatal"]:
        close_ports(state, fact)


def _close(state: State, fact: Fact, ports: list[int]) -> None:
    for port in ports:
        state.delete(fact.project, f"{fact.id}_{port}")
