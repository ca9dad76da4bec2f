"""``compat-matrix``: which replicas still fit their nodes, template by template, and in numbers (reference/cubesandbox.md §6).

A row is a template; its cells are the online nodes, and those offline nodes that hold a ready replica of it. A node that holds none is
MISSING, a ready replica is judged, anything else of it does not count.

With a thousand templates on a thousand nodes there are a million cells, so they are neither stored as rows nor counted when asked for: a
note per ready replica carries its judgement, every change of one moves counters, and rows are put together when they are read. MISSING
is what remains: (templates x online nodes) minus ready replicas on online nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from domain.kernel.errors import Refused, not_found
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.orders import Versions
from domain.templates.compat import Compat, Policy, judge, overall
from projections.facts import Fact
from projections.question import invalid
from projections.state import EVERYTHING, State
from projections.store import ITEMS, Item, Reader
from projections.view import Ask, Page, View

CELL: Final = "cell"
"""Kind: a ready replica, by replica id."""
REPLICA: Final = "replica"
"""Kind: any replica, by replica id: which template and node it belongs to."""
NODE: Final = "node"
"""Kind: what a node runs and whether it is heard, by node id; evicted ones are not in the matrix."""
COUNTS: Final = "counts"
"""Kind: a project's counters under ``summary``; the installation's online nodes under ``nodes``."""
AFFECTED: Final = "affected"
"""Kind: how many stale cells a node has in a project, by node id."""

WHAT_IF: Final = "what-if"
"""What would become of a node's replicas if it ran other versions: asked of the view, no event. A version that is not given stays."""

PAGE_CELLS: Final = 20_000
"""Cells per answer: about 4 MB. A page ends early rather than growing beyond what the bus carries."""
SCAN: Final = 200

_ONLINE: Final = "online"
_EVICTED: Final = "evicted"
_NO_NODE: Final[Item] = {"versions": Versions().model_dump(), "state": _EVICTED}
"""A node that nobody has enrolled is as little in the matrix as one that was evicted."""


class CompatMatrix(View):
    """Rows are put together from notes when they are read."""

    def get(self, reader: Reader, project: str, id: str) -> Item:  # noqa: A002
        row = reader.get(ITEMS, project, id)
        if row is None:
            raise Refused("template.not-found", f"no template {id!r}", details={"id": id})
        return _assemble(reader, project, row, _nodes(reader))

    def list(self, reader: Reader, project: str, where: Mapping[str, Any], after: str, limit: int) -> Page:
        nodes = _nodes(reader)
        wanted = where.get("overall")
        rows = _rows(reader, project, {k: v for k, v in where.items() if k != "overall"}, after)
        found: list[tuple[str, Item]] = []
        cells = 0
        for row in rows:
            if wanted is not None and _hint(row, nodes) not in {wanted, None}:
                continue
            if len(found) >= limit or cells >= PAGE_CELLS:
                return Page(found, more=True)
            made = _assemble(reader, project, row, nodes)
            if wanted in {None, made["overall"]}:
                found.append((row["template_id"], made))
                cells += len(made["nodes"])
        return Page(found, more=False)

    def summary(self, reader: Reader, project: str) -> Item:
        counts = {**_SUMMARY, **(reader.get(COUNTS, project, "summary") or {})}
        online = (reader.get(COUNTS, SYSTEM_PROJECT, "nodes") or {"online": 0})["online"]
        ready_online = counts.pop("_ready_online")
        return {**counts, "missing_replicas": counts["templates"] * online - ready_online, "online_nodes": online}


_SUMMARY: Final = {
    "templates": 0,
    "stale_templates": 0,
    "stale_replicas": 0,
    "affected_nodes": 0,
    "unknown_replicas": 0,
    "_ready_online": 0,
}


def _what_if(reader: Reader, project: str, where: Mapping[str, Any], after: str, limit: int) -> Page:
    """Every ready replica of a node, judged as now and as if the node, heard, ran the given versions.

    ``what_if`` leaves those that would be that. Raises ``node.not-found`` and ``query.invalid``.
    """
    node_id, current, supposed = _supposed(reader, where)
    wanted = where.get("what_if")
    found: list[tuple[str, Item]] = []
    while True:
        page = reader.scan(CELL, project, {"node_id": node_id}, after, SCAN)
        for _, replica_id, cell in page:
            row = reader.get(ITEMS, project, cell["template_id"])
            then = None if row is None else judge(Versions(**cell["bound"]), supposed, online=True, policy=row["policy"]).value
            if row is None or wanted not in {None, then}:
                continue
            if len(found) == limit:
                return Page(found, more=True)
            made = {**cell, "policy": row["policy"], "what_if": then, "current": current, "supposed": supposed.model_dump()}
            found.append((replica_id, made))
        if len(page) < SCAN:
            return Page(found, more=False)
        after = page[-1][1]


def _supposed(reader: Reader, where: Mapping[str, Any]) -> tuple[str, Item, Versions]:
    """The node that is asked about, what it runs, and what it is supposed to run."""
    bad = {name: "must be a string" for name, value in where.items() if not isinstance(value, str)}
    given = {name: where[name] for name in Versions.model_fields if name in where}
    if bad or "node_id" not in where or not given:
        raise invalid(**(bad or {"node_id": "must be given, and one of guest_image, agent and kernel"}))
    node = reader.get(NODE, SYSTEM_PROJECT, where["node_id"])
    if node is None or node["state"] == _EVICTED:
        raise not_found("node", where["node_id"])
    return where["node_id"], node["versions"], Versions(**{**node["versions"], **given})


VIEW: Final = CompatMatrix(
    "compat-matrix",
    noun="template",
    key="template_id",
    counted="overall",
    lookups=("node_id", "template_id"),
    asks={
        WHAT_IF: Ask(
            asked={"node_id": "", "guest_image": "", "agent": "", "kernel": "", "what_if": ""},
            shown={"template_id": "", "node_id": "", "policy": "", "compat": "", "what_if": "", "bound": {}, "current": {}, "supposed": {}},
            answer=_what_if,
        )
    },
    fields={"template_id": "", "policy": Policy.STRICT.value, "overall": Compat.OK.value, "nodes": []},
    schema=2,
)


# ---------------------------------------------------------------------------------------------------------------- reading


def _nodes(reader: Reader) -> dict[str, Item]:
    """Every node of the matrix, by id, in the order of ids."""
    return {id_: node for _, id_, node in reader.scan(NODE, SYSTEM_PROJECT, {}, "", EVERYTHING) if node["state"] != _EVICTED}


def _rows(reader: Reader, project: str, where: Mapping[str, Any], after: str) -> Iterator[Item]:
    while True:
        page = reader.scan(ITEMS, project, where, after, SCAN)
        yield from (row for _, _, row in page)
        if len(page) < SCAN:
            return
        after = page[-1][1]


def _hint(row: Item, nodes: Mapping[str, Item]) -> str | None:
    """The row's overall word, as far as its counters tell; None when the order of its cells decides."""
    if row["_stale"]:
        return Compat.STALE.value
    missing = sum(node["state"] == _ONLINE for node in nodes.values()) - row["_ready_online"]
    if row["_unknown"] and missing:
        return None
    if row["_unknown"] or missing:
        return (Compat.UNKNOWN if row["_unknown"] else Compat.MISSING).value
    return Compat.OK.value


def _assemble(reader: Reader, project: str, row: Item, nodes: Mapping[str, Item]) -> Item:
    cells = reader.scan(CELL, project, {"template_id": row["template_id"]}, "", EVERYTHING)
    ready = {cell["node_id"]: cell for _, _, cell in cells}
    made = []
    for node_id, node in nodes.items():
        cell = ready.get(node_id)
        if cell is not None:
            made.append({"node_id": node_id, "compat": cell["compat"], "bound": cell["bound"], "current": node["versions"]})
        elif node["state"] == _ONLINE:
            made.append({"node_id": node_id, "compat": Compat.MISSING.value, "bound": None, "current": node["versions"]})
    word = overall(Compat(cell["compat"]) for cell in made)
    return {"template_id": row["template_id"], "policy": row["policy"], "overall": word.value, "nodes": made}


# --------------------------------------------------------------------------------------------------------------- applying


@VIEW.on("template.created")
def template_created(state: State, fact: Fact) -> None:
    row = {"template_id": fact.id, "policy": Policy.STRICT.value, "_stale": 0, "_unknown": 0, "_ready_online": 0}
    state.put(fact.project, fact.id, row)
    _summary(state, fact.project)["templates"] += 1
    for project, replica_id in state.find({"template_id": fact.id}, kind=CELL, project=fact.project):
        cell = state.get(project, replica_id, kind=CELL)
        if cell is not None:
            _count(state, project, cell, _node(state, cell["node_id"]), 1)


@VIEW.on("template.compat-policy-set")
def template_compat_policy_set(state: State, fact: Fact) -> None:
    row = state.edit(fact.project, fact.id)
    if row is None:
        return
    row["policy"] = fact.data["policy"]
    for project, replica_id in state.find({"template_id": fact.id}, kind=CELL, project=fact.project):
        cell = state.get(project, replica_id, kind=CELL)
        if cell is not None:
            node = _node(state, cell["node_id"])
            _rejudge(state, project, replica_id, cell, node, node)


@VIEW.on("template.deleted")
def template_deleted(state: State, fact: Fact) -> None:
    for project, replica_id in state.find({"template_id": fact.id}, kind=CELL, project=fact.project):
        _drop_cell(state, project, replica_id)
    if state.get(fact.project, fact.id) is not None:
        state.delete(fact.project, fact.id)
        _summary(state, fact.project)["templates"] -= 1


@VIEW.on("replica.created")
def replica_created(state: State, fact: Fact) -> None:
    """Its address; whether it counts is said by the events after."""
    state.put(fact.project, fact.id, {"template": fact.data["template_id"], "node": fact.data["node_id"]}, kind=REPLICA)


@VIEW.on("replica.ready", "replica.baseline-adopted")
def replica_bound(state: State, fact: Fact) -> None:
    replica = state.get(fact.project, fact.id, kind=REPLICA)
    if replica is None:
        return
    _drop_cell(state, fact.project, fact.id)
    node = _node(state, replica["node"])
    bound = fact.data["versions"]
    cell = {"template_id": replica["template"], "node_id": replica["node"], "bound": bound, "compat": ""}
    cell["compat"] = _word(state, fact.project, cell, node)
    state.put(fact.project, fact.id, cell, kind=CELL)
    _count(state, fact.project, cell, node, 1)


@VIEW.on("replica.failed", "replica.redone", "replica.cleaning", "replica.removed")
def replica_unready(state: State, fact: Fact) -> None:
    _drop_cell(state, fact.project, fact.id)


@VIEW.on("node.enrolled", "node.re-enrolled")
def node_enrolled(state: State, fact: Fact) -> None:
    _change_node(state, fact.id, state_="offline")


@VIEW.on("node.versions-changed")
def node_versions_changed(state: State, fact: Fact) -> None:
    _change_node(state, fact.id, versions=fact.data["versions"])


@VIEW.on("node.came-online")
def node_came_online(state: State, fact: Fact) -> None:
    _change_node(state, fact.id, state_=_ONLINE)


@VIEW.on("node.went-offline")
def node_went_offline(state: State, fact: Fact) -> None:
    _change_node(state, fact.id, state_="offline")


@VIEW.on("node.evicted")
def node_evicted(state: State, fact: Fact) -> None:
    _change_node(state, fact.id, state_=_EVICTED)


def _change_node(state: State, node_id: str, *, state_: str | None = None, versions: dict[str, str] | None = None) -> None:
    """A node is another than before: every cell on it is judged and counted anew."""
    before = _node(state, node_id)
    after = {"versions": versions or before["versions"], "state": state_ or before["state"]}
    state.put(SYSTEM_PROJECT, node_id, after, kind=NODE)
    moved = (after["state"] == _ONLINE) - (before["state"] == _ONLINE)
    if moved:
        counts = state.edit(SYSTEM_PROJECT, "nodes", kind=COUNTS) or state.put(SYSTEM_PROJECT, "nodes", {"online": 0}, kind=COUNTS)
        counts["online"] += moved
    for project, replica_id in state.find({"node_id": node_id}, kind=CELL):
        cell = state.get(project, replica_id, kind=CELL)
        if cell is not None:
            _rejudge(state, project, replica_id, cell, before, after)


def _rejudge(state: State, project: str, replica_id: str, cell: Item, before: Item, after: Item) -> None:
    """Judge a cell again, whose node was ``before`` and is ``after``, and count it where it belongs now."""
    word = _word(state, project, cell, after)
    if after["state"] == before["state"] and word == cell["compat"]:
        return
    _count(state, project, cell, before, -1)
    _count(state, project, state.put(project, replica_id, {**cell, "compat": word}, kind=CELL), after, 1)


def _node(state: State, node_id: str) -> Item:
    return state.get(SYSTEM_PROJECT, node_id, kind=NODE) or _NO_NODE


def _word(state: State, project: str, cell: Item, node: Item) -> str:
    """The cell's judgement by its template's policy; strict where there is no such template (yet)."""
    row = state.get(project, cell["template_id"])
    policy = Policy.STRICT if row is None else row["policy"]
    return judge(Versions(**cell["bound"]), Versions(**node["versions"]), node["state"] == _ONLINE, policy).value


def _drop_cell(state: State, project: str, replica_id: str) -> None:
    cell = state.get(project, replica_id, kind=CELL)
    if cell is not None:
        _count(state, project, cell, _node(state, cell["node_id"]), -1)
        state.delete(project, replica_id, kind=CELL)


def _count(state: State, project: str, cell: Item, node: Item, sign: int) -> None:
    """Add a cell to its row, to the summary and to its node, or take it away. Cells of evicted nodes are in none of them."""
    row = state.edit(project, cell["template_id"])
    if row is None or node["state"] == _EVICTED:
        return
    summary = _summary(state, project)
    if node["state"] == _ONLINE:
        row["_ready_online"] += sign
        summary["_ready_online"] += sign
    if cell["compat"] == Compat.UNKNOWN:
        row["_unknown"] += sign
        summary["unknown_replicas"] += sign
    elif cell["compat"] == Compat.STALE:
        summary["stale_templates"] += _passes_zero(row, "_stale", sign)
        summary["stale_replicas"] += sign
        key = (project, cell["node_id"])
        affected = state.edit(*key, kind=AFFECTED) or state.put(*key, {"stale": 0}, kind=AFFECTED)
        summary["affected_nodes"] += _passes_zero(affected, "stale", sign)


def _passes_zero(item: Item, field: str, sign: int) -> int:
    """Move a counter by one; 1 when it left zero, -1 when it came back to it."""
    before = item[field]
    item[field] = before + sign
    return int(item[field] > 0) - int(before > 0)


def _summary(state: State, project: str) -> Item:
    return state.edit(project, "summary", kind=COUNTS) or state.put(project, "summary", dict(_SUMMARY), kind=COUNTS)
