"""What a node must be for a sandbox to go there: the rules of placement, in the order in which they are asked. Pure.

Each rule says of one node whether it passes, of one that does not its stable code and the reason, and of all of them together the refusal
that a caller gets when nobody passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused, not_found

READY: Final = "ready"
UNREACHABLE: Final = frozenset({"offline", "evicted"})
STALE: Final = "STALE"
EGRESS: Final = "egress"
"""The flag of drivers whose sandboxes get out of the node by rules of their own."""
Strategy = Literal["spread", "pack", "affinity"]

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
    """A node as it looks now. ``status`` and ``compat`` in the contract's words; ``memory_mb`` is all that may be promised on it.

    ``drivers``: the default one first; ``flags``: what each of them can do. ``free_sandboxes`` None: without bound; ``cpu_bounded``: no
    more cores than are free. ``present``: how many sandboxes of the template it has; ``far``: it would have to fetch the snapshot.
    """

    node_id: str
    status: str
    drivers: tuple[str, ...] = ()
    flags: dict[str, tuple[str, ...]] = {}
    labels: dict[str, str] = {}
    free_cpu: float = 0
    cpu_bounded: bool = False
    free_memory_mb: float = 0
    memory_mb: float = 0
    free_sandboxes: int | None = None
    replica_ready: bool = False
    compat: str = "OK"
    present: int = 0
    far: bool = False

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

    def crowded(self, need: Need) -> bool:
        """Has it fewer free cores than are wanted?"""
        return self.free_cpu < need.cpu


class Need(Record):
    """What a sandbox needs: cores, MiB, a driver (None: any), a node (None: any). ``at_work``: a job makes its template ready somewhere.

    ``bounds``: which of them its caller asked for by name, so that they must hold; the others are the template's. ``node_labels``: what the
    node must have, with these values. ``egress``: its policy lets it out somewhere, so only a node with rules for that will do.
    ``flag``: of the driver, without which it cannot go on from its snapshot's memory; empty for a disk, and where nobody wrote it down.
    """

    cpu: float = 1
    memory_mb: int = 512
    driver: str | None = None
    node: str | None = None
    at_work: bool = False
    bounds: tuple[str, ...] = ()
    egress: bool = False
    flag: str = ""
    node_labels: dict[str, str] = {}
    strategy: Strategy = "spread"


Pool = Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Rule:
    """``passes`` one node; ``say`` of one that does not: (code, reason); ``refuse`` for all of those that got so far."""

    passes: Callable[[Candidate, Need], bool]
    say: Callable[[Candidate, Need], tuple[str, str]]
    refuse: Callable[[Pool, Need], Refused]


def _ids(pool: Pool) -> list[str]:
    return sorted(c.node_id for c in pool)


# ------------------------------------------------------------------------------------------------------------- meant


def _meant(c: Candidate, need: Need) -> bool:
    return c.node_id == need.node if need.node is not None else c.status != "evicted"


def _say_not_meant(c: Candidate, need: Need) -> tuple[str, str]:
    if need.node is not None:
        return "node.not-asked", f"node {need.node} was asked for"
    return "node.evicted", f"node {c.node_id} is evicted"


def _none_meant(_pool: Pool, need: Need) -> Refused:
    if need.node is not None:
        return not_found("node", need.node)
    return no_ready_replica("the template is ready on none of these nodes", [], at_work=need.at_work)


def _say_status(c: Candidate, _need: Need) -> tuple[str, str]:
    return f"node.{c.status}", f"node {c.node_id} is {c.status}"


def _none_up(pool: Pool, _need: Need) -> Refused:
    """Of the one node that was asked for."""
    node, status = pool[0].node_id, pool[0].status
    details = {"node": node, "status": status}
    return Refused(f"node.{status}", f"node {node} is {status}", retryable=status != "evicted", details=details)


# ----------------------------------------------------------------------------------------------------------- template


def no_ready_replica(why: str, nodes: list[str], *, at_work: bool) -> Refused:
    """Nothing can start from the template now. The caller's own mistake (reference/cubesandbox.md §2.5), unless a job is ``at_work``."""
    return Refused("template.no-ready-replica", why, retryable=at_work, details={"nodes": nodes})


def _none_offline(pool: Pool, _need: Need) -> Refused:
    return Refused("node.offline", "every node with a ready replica is offline", retryable=True, details={"nodes": _ids(pool)})


def _none_fitting(pool: Pool, _need: Need) -> Refused:
    nodes = _ids(pool)
    return Refused("template.stale-needs-redo", f"every ready replica is stale ({', '.join(nodes)}): redo it", details={"nodes": nodes})


def _none_open(pool: Pool, _need: Need) -> Refused:
    why = "every node with a ready replica is cordoned or draining"
    return Refused("capacity.exhausted", why, retryable=True, details={"nodes": _ids(pool)})


# ------------------------------------------------------------------------------------------------------ what it can do


def _driving(c: Candidate, need: Need) -> bool:
    return need.driver is None or need.driver in c.drivers


def _none_driving(pool: Pool, need: Need) -> Refused:
    why = f"none of these nodes has the driver {need.driver}"
    return Refused("node.no-driver", why, details={"nodes": _ids(pool), "driver": need.driver})


def _labelled(c: Candidate, need: Need) -> bool:
    return need.node_labels.items() <= c.labels.items()


def _lacking_labels(need: Need) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(need.node_labels.items()))


def _none_labelled(pool: Pool, need: Need) -> Refused:
    why = f"none of these nodes has the labels {_lacking_labels(need)}"
    return Refused("node.no-labels", why, details={"nodes": _ids(pool), "labels": need.node_labels})


def _lacking_bounds(pool: Pool, need: Need) -> list[str]:
    return sorted({name for c in pool for name in c.unenforced(need.driver)} & set(need.bounds))


def _none_bounding(pool: Pool, need: Need) -> Refused:
    lacking = _lacking_bounds(pool, need)
    return Refused(
        "sandbox.unsupported",
        f"no driver there keeps a sandbox to its {' and '.join(lacking)}: leave it out, or choose another driver",
        details={"fields": lacking, "needs": {name: sorted(BOUNDED_BY[name]) for name in lacking}, "nodes": _ids(pool)},
    )


def _none_going_on(pool: Pool, need: Need) -> Refused:
    """A memory fits only what it was saved by (reference/runtimes.md §11)."""
    nodes = _ids(pool)
    why = f"the snapshot's memory was saved by another build of {need.driver or 'its driver'} than {', '.join(nodes)} has"
    return Refused("snapshot.incompatible", why, details={"nodes": nodes, "flag": need.flag})


def _none_letting_out(pool: Pool, _need: Need) -> Refused:
    return Refused(
        "sandbox.unsupported",
        "no node there lets a sandbox out by rules of its own: leave egress out, or start the nodes with --egress, as root",
        details={"fields": ["egress"], "needs": {"egress": [EGRESS]}, "nodes": _ids(pool)},
    )


# --------------------------------------------------------------------------------------------------------------- room


def short_of(c: Candidate, need: Need) -> str:
    """What it has too little of; empty when there is room."""
    if c.free_memory_mb < need.memory_mb:
        return "memory"
    if c.cpu_bounded and c.free_cpu < need.cpu:
        return "cpu"
    return "sandboxes" if c.free_sandboxes is not None and c.free_sandboxes < 1 else ""


def _say_short(c: Candidate, need: Need) -> tuple[str, str]:
    said = {
        "memory": f"{c.free_memory_mb:g} MiB of memory are left, {need.memory_mb} are wanted",
        "cpu": f"{c.free_cpu:g} cores are left, {need.cpu:g} are wanted",
        "sandboxes": "it has as many sandboxes as it may",
    }
    return "capacity.exhausted", said[short_of(c, need)]


def _none_roomy(pool: Pool, need: Need) -> Refused:
    short = {c.node_id: short_of(c, need) for c in pool}
    wanted = {"memory": f"{need.memory_mb} MiB of memory", "cpu": f"{need.cpu:g} cores", "sandboxes": "room for one more sandbox"}
    what = " and ".join(wanted[name] for name in wanted if name in short.values())
    details = {"nodes": sorted(short), "memory_mb": need.memory_mb, "cpu": need.cpu, "short_of": short}
    return Refused("capacity.exhausted", f"no node has {what} left", retryable=True, details=details)


RULES: Final = (
    Rule(_meant, _say_not_meant, _none_meant),
    Rule(lambda c, need: need.node is None or c.status == READY, _say_status, _none_up),
    Rule(
        lambda c, _: c.replica_ready,
        lambda _c, _n: ("template.no-ready-replica", "the template is not ready there"),
        lambda pool, need: no_ready_replica("the template is ready on none of these nodes", _ids(pool), at_work=need.at_work),
    ),
    Rule(lambda c, _: c.status not in UNREACHABLE, _say_status, _none_offline),
    Rule(  # only STALE keeps a sandbox from starting (reference/cubesandbox.md §6)
        lambda c, _: c.compat != STALE,
        lambda _c, _n: ("template.stale-needs-redo", "its replica is stale: redo it"),
        _none_fitting,
    ),
    Rule(lambda c, _: c.status == READY, _say_status, _none_open),
    Rule(_driving, lambda _c, need: ("node.no-driver", f"it has no driver {need.driver}"), _none_driving),
    Rule(
        lambda c, need: not need.flag or need.flag in c.flags_of(need.driver),
        lambda _c, need: ("snapshot.incompatible", f"its build of {need.driver or 'the driver'} cannot go on from that memory"),
        _none_going_on,
    ),
    Rule(_labelled, lambda _c, need: ("node.no-labels", f"it has not the labels {_lacking_labels(need)}"), _none_labelled),
    Rule(
        lambda c, need: set(need.bounds).isdisjoint(c.unenforced(need.driver)),
        lambda c, need: ("sandbox.unsupported", f"its driver does not keep {' and '.join(_lacking_bounds([c], need))}"),
        _none_bounding,
    ),
    Rule(
        lambda c, need: not need.egress or EGRESS in c.flags_of(need.driver),
        lambda _c, _n: ("sandbox.unsupported", "it lets no sandbox out by rules of its own"),
        _none_letting_out,
    ),
    Rule(lambda c, need: not short_of(c, need), _say_short, _none_roomy),
)
