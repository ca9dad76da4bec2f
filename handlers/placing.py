"""Where a sandbox can go: the fleet index as candidates of domain/nodes/placement.py, for ``sandbox.create`` and for who asks why."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from domain.kernel.errors import Refused
from domain.nodes.orders import Capacity
from domain.nodes.placement import Candidate, Decision, Need, decide, room
from domain.sandboxes.placed import Placed, Strategy
from domain.templates.compat import Compat, evaluate
from domain.templates.snapshot import Snapshot
from domain.templates.snapshot_events import DISKS
from domain.templates.template import Template
from handlers.control import Control
from handlers.fleet import Fleet
from handlers.fleet_entries import NodeEntry


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller says about where: a node, labels of nodes, a strategy; ``bounds``: limits asked for by name; ``egress``: a way out."""

    node: str | None = None
    node_labels: dict[str, str] | None = None
    strategy: Strategy = "spread"
    bounds: tuple[str, ...] = ()
    egress: bool = False

    def need(self, cpu: float, memory_mb: int, driver: str | None, *, at_work: bool = False) -> Need:
        """The same as placement's question, for a sandbox of that size."""
        return Need(
            cpu=cpu,
            memory_mb=memory_mb,
            driver=driver,
            node=self.node,
            at_work=at_work,
            bounds=self.bounds,
            egress=self.egress,
            node_labels=self.node_labels or {},
            strategy=self.strategy,
        )


def status_of(node: NodeEntry) -> str:
    """In the contract's words."""
    if node.evicted:
        return "evicted"
    if not node.online:
        return "offline"
    return "ready" if node.scheduling == "OPEN" else node.scheduling.lower()


def candidate(node: NodeEntry, compat: Compat, *, replica: bool, present: int = 0, far: bool = False) -> Candidate:
    """A node as placement sees it."""
    used = Capacity(cpu=max(0.0, node.used_cpu), memory_mb=node.used_memory_mb, sandboxes=node.sandboxes)
    return Candidate(
        node_id=node.node_id,
        status=status_of(node),
        drivers=node.drivers,
        flags=node.flags,
        labels=node.labels,
        replica_ready=replica,
        compat=compat.value,
        present=present,
        far=far,
        **room(node.capacity, used, node.overcommit),
    )


def for_template(control: Control, template: Template, strategy: Strategy) -> list[Candidate]:
    """Every node, with what it has of a template."""
    fleet = control.fleet
    replicas, present = fleet.by_template.get(template.id, {}), _present(fleet, template.id, strategy)
    candidates = []
    for node in fleet.nodes.values():
        replica = replicas.get(node.node_id)
        ready = replica is not None and replica.state == "READY"
        compat = evaluate(replica.bound, node.versions, template.compat_policy) if ready and replica is not None else Compat.MISSING
        candidates.append(candidate(node, compat, replica=ready, present=present[node.node_id]))
    return candidates


def for_snapshot(control: Control, snapshot: Snapshot, strategy: Strategy) -> list[Candidate]:
    """Nodes that have a snapshot, and those that could fetch it, which are farther."""
    fleet = control.fleet
    kind = None if snapshot.stored_as is None else snapshot.stored_as.kind
    present = _present(fleet, snapshot.template_id, strategy)

    def candidates(nodes: Iterable[NodeEntry], *, far: bool) -> list[Candidate]:
        return [candidate(n, Compat.OK, replica=True, present=present[n.node_id], far=far) for n in nodes]

    here = [n for n in fleet.nodes.values() if n.node_id in snapshot.places]
    able = [
        n
        for n in fleet.nodes.values()
        if kind is not None and n.node_id not in snapshot.places and (kind == DISKS or n.roots in {"", kind})
    ]
    return [*candidates(here, far=False), *candidates(able, far=True)]


def on_snapshot(snapshot: Snapshot, wish: Wish, candidates: list[Candidate]) -> Wish:
    """One that is on a single node, and cannot be fetched, wants that node: the refusal then says what is wrong with it."""
    alone = snapshot.places == {snapshot.node_id} and not any(c.far for c in candidates)
    return replace(wish, node=wish.node or snapshot.node_id) if alone else wish


def _present(fleet: Fleet, template_id: str, strategy: Strategy) -> Counter[str]:
    """How many sandboxes of a template each node has; counted only where it matters."""
    if strategy != "affinity":
        return Counter()
    return Counter(fleet.sandboxes[user].node_id for user in fleet.users.get(template_id, ()))


def place(candidates: list[Candidate], need: Need, wish: Wish) -> tuple[str, Placed]:
    """The node, and what is written down of why. Raises the most telling ``Refused``."""
    decision: Decision = decide(candidates, need)
    said = decision.model_dump(exclude={"node_id"})
    return decision.node_id, Placed(**said, node=wish.node, node_labels=wish.node_labels or {})


def place_snapshot(snapshot: Snapshot, candidates: list[Candidate], need: Need, wish: Wish) -> tuple[str, Placed]:
    """Where it can go on from the snapshot's memory, as ``place``.

    What the nodes have told of themselves may be old: where nobody fits, one that has it is asked, and refuses it itself.
    """
    try:
        return place(candidates, need.model_copy(update={"flag": snapshot.needs}), wish)
    except Refused:
        with contextlib.suppress(Refused):
            return place([c for c in candidates if not c.far], need, wish)
        raise
