"""Placement: on which node a sandbox goes, or the most telling reason why on none. Pure.

A candidate must be open for scheduling, have a ready replica that is not STALE, the wished driver, one that keeps the bounds that were
asked for, and the memory. CPU time is shared, so too few free cores only make a node less attractive. Among those that fit, the one with
the greatest share of its memory free wins, so that sandboxes spread; equal ones go by id, so that the same question has the same answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused, not_found

READY: Final = "ready"
UNREACHABLE: Final = frozenset({"offline", "evicted"})
STALE: Final = "STALE"
EGRESS: Final = "egress"
"""The flag of drivers whose sandboxes get out of the node by rules of their own."""


BOUNDED_BY: Final[Mapping[str, frozenset[str]]] = {
    "cpu": frozenset({"limits"}),
    "memory_mb": frozenset({"limits", "rlimit-memory"}),
    "pids": frozenset({"limits", "rlimit-pids"}),
    "disk_mb": frozenset({"disk-limit"}),
}
"""Which capability flags of a driver, each by itself, make a bound of a recipe hold (design.md §7: refused, never pretended)."""


def unenforced(flags: Collection[str]) -> tuple[str, ...]:
    """The bounds that nobody keeps on a driver with these flags."""
    return tuple(sorted(name for name, enough in BOUNDED_BY.items() if enough.isdisjoint(flags)))


class Candidate(Record):
    """A node as it looks now. ``status`` and ``compat`` in the contract's words; ``memory_mb`` is all it has.

    ``drivers``: the default one first; ``flags``: what each of them can do.
    """

    node_id: str
    status: str
    drivers: tuple[str, ...] = ()
    flags: dict[str, tuple[str, ...]] = {}
    free_cpu: float = 0
    free_memory_mb: float = 0
    memory_mb: float = 0
    replica_ready: bool = False
    compat: str = "OK"

    @property
    def free_share(self) -> float:
        """The part of its memory that is free."""
        return self.free_memory_mb / self.memory_mb if self.memory_mb else 0.0

    def unenforced(self, driver: str | None) -> tuple[str, ...]:
        """The bounds that nobody would keep here."""
        return unenforced(self.flags_of(driver))

    def flags_of(self, driver: str | None) -> tuple[str, ...]:
        """What that driver can do here, or the default one."""
        return self.flags.get(driver or next(iter(self.drivers), ""), ())


class Need(Record):
    """What a sandbox needs: cores, MiB, a driver (None: any), a node (None: any). ``at_work``: a job makes its template ready somewhere.

    ``bounds``: which of them its caller asked for by name, so that they must hold; the others are the template's.
    """

    cpu: float = 1
    memory_mb: int = 512
    driver: str | None = None
    node: str | None = None
    at_work: bool = False
    bounds: tuple[str, ...] = ()
    egress: bool = False
    """Its policy lets it out somewhere: only a node that lets sandboxes out by rules of their own will do."""


def choose(candidates: Sequence[Candidate], need: Need) -> str:
    """The node's id. Raises ``Refused`` naming the first rule that nobody passed."""
    pool = _meant(candidates, need.node)
    pool = _having_replica(pool, at_work=need.at_work)
    pool = _fitting(pool)
    pool = _open(pool)
    pool = _driving(pool, need.driver)
    pool = _bounding(pool, need)
    pool = _letting_out(pool, need)
    pool = _roomy(pool, need)
    return min(pool, key=lambda c: (c.free_cpu < need.cpu, -c.free_share, c.node_id)).node_id


def _meant(candidates: Sequence[Candidate], node: str | None) -> list[Candidate]:
    if node is None:
        return [c for c in candidates if c.status != "evicted"]
    meant = [c for c in candidates if c.node_id == node]
    if not meant:
        raise not_found("node", node)
    if meant[0].status != READY:
        raise Refused(
            f"node.{meant[0].status}",
            f"node {node} is {meant[0].status}",
            retryable=meant[0].status != "evicted",
            details={"node": node, "status": meant[0].status},
        )
    return meant


def _having_replica(pool: list[Candidate], *, at_work: bool) -> list[Candidate]:
    ready = [c for c in pool if c.replica_ready]
    if not ready:
        raise no_ready_replica("the template is ready on none of these nodes", _ids(pool), at_work=at_work)
    reachable = [c for c in ready if c.status not in UNREACHABLE]
    if not reachable:
        raise Refused("node.offline", "every node with a ready replica is offline", retryable=True, details={"nodes": _ids(ready)})
    return reachable


def require_known(nodes: Sequence[str], known: Collection[str]) -> None:
    """Raises ``node.not-found`` for the first of ``nodes`` that nobody has enrolled."""
    unknown = next((node for node in nodes if node not in known), None)
    if unknown is not None:
        raise not_found("node", unknown)


def no_ready_replica(why: str, nodes: list[str], *, at_work: bool) -> Refused:
    """Nothing can start from the template now. The caller's own mistake (reference/cubesandbox.md §2.5), unless a job is ``at_work``."""
    return Refused("template.no-ready-replica", why, retryable=at_work, details={"nodes": nodes})


def _fitting(pool: list[Candidate]) -> list[Candidate]:
    """Only STALE keeps a sandbox from starting (reference/cubesandbox.md §6)."""
    fitting = [c for c in pool if c.compat != STALE]
    if not fitting:
        nodes = _ids(pool)
        raise Refused("template.stale-needs-redo", f"every ready replica is stale ({', '.join(nodes)}): redo it", details={"nodes": nodes})
    return fitting


def _open(pool: list[Candidate]) -> list[Candidate]:
    ready = [c for c in pool if c.status == READY]
    if not ready:
        raise Refused(
            "capacity.exhausted", "every node with a ready replica is cordoned or draining", retryable=True, details={"nodes": _ids(pool)}
        )
    return ready


def _driving(pool: list[Candidate], driver: str | None) -> list[Candidate]:
    able = [c for c in pool if driver is None or driver in c.drivers]
    if not able:
        raise Refused("node.no-driver", f"none of these nodes has the driver {driver}", details={"nodes": _ids(pool), "driver": driver})
    return able


def _bounding(pool: list[Candidate], need: Need) -> list[Candidate]:
    able = [c for c in pool if not set(need.bounds) & set(c.unenforced(need.driver))]
    if not able:
        lacking = sorted({name for c in pool for name in c.unenforced(need.driver)} & set(need.bounds))
        raise Refused(
            "sandbox.unsupported",
            f"no driver there keeps a sandbox to its {' and '.join(lacking)}: leave it out, or choose another driver",
            details={"fields": lacking, "needs": {name: sorted(BOUNDED_BY[name]) for name in lacking}, "nodes": _ids(pool)},
        )
    return able


def _letting_out(pool: list[Candidate], need: Need) -> list[Candidate]:
    able = [c for c in pool if not need.egress or EGRESS in c.flags_of(need.driver)]
    if not able:
        raise Refused(
            "sandbox.unsupported",
            "no node there lets a sandbox out by rules of its own: leave egress out, or start the nodes with --egress, as root",
            details={"fields": ["egress"], "needs": {"egress": [EGRESS]}, "nodes": _ids(pool)},
        )
    return able


def _roomy(pool: list[Candidate], need: Need) -> list[Candidate]:
    roomy = [c for c in pool if c.free_memory_mb >= need.memory_mb]
    if not roomy:
        raise Refused(
            "capacity.exhausted",
            f"no node has {need.memory_mb} MiB of memory left",
            retryable=True,
            details={"nodes": _ids(pool), "memory_mb": need.memory_mb},
        )
    return roomy


def _ids(pool: Sequence[Candidate]) -> list[str]:
    return sorted(c.node_id for c in pool)
