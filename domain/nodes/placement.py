"""Placement: on which node a sandbox goes, or the most telling reason why on none, and what is to be said of each node. Pure.

A node fits when every rule of ``placement_rules.py`` lets it pass. Among those that fit, nodes that have the snapshot come before those
that would fetch it, nodes with cores left before crowded ones, and then the strategy's score decides:

* ``spread``: the share of its memory that is free, so that sandboxes spread;
* ``pack``: the share that is used, so that whole nodes stay free;
* ``affinity``: how many sandboxes of the same template it has, whose pages are in its memory already, and then as ``spread``.

Equal ones go by id, so that the same question has the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from domain.kernel.aggregate import Record
from domain.kernel.errors import not_found
from domain.nodes.orders import Capacity
from domain.nodes.placement_rules import RULES, Candidate, Need, Strategy, no_ready_replica, short_of, unenforced

__all__ = [
    "Candidate",
    "Decision",
    "Need",
    "Overcommit",
    "Strategy",
    "Verdict",
    "choose",
    "decide",
    "explain",
    "no_ready_replica",
    "require_known",
    "room",
    "short_of",
    "unenforced",
]


class Overcommit(Record):
    """How much more than a node has may be promised on it: 1 is exactly what it has.

    ``cpu`` 0: without bound. So it is from the start: processor time is shared, so too few free cores only make a node less attractive.
    """

    cpu: float = 0
    memory: float = 1
    sandboxes: float = 1


def room(capacity: Capacity, used: Capacity, ratios: Overcommit) -> dict[str, Any]:
    """The fields of a ``Candidate`` that say what may still be promised on a node; ``capacity.sandboxes`` 0: it did not say."""
    memory = capacity.memory_mb * ratios.memory
    return {
        "free_cpu": capacity.cpu * (ratios.cpu or 1) - used.cpu,
        "cpu_bounded": bool(ratios.cpu),
        "free_memory_mb": memory - used.memory_mb,
        "memory_mb": memory,
        "free_sandboxes": int(capacity.sandboxes * ratios.sandboxes) - used.sandboxes if capacity.sandboxes else None,
    }


class Decision(Record):
    """Where, and why there. ``considered`` nodes were looked at, ``fitting`` of them could have it, the others were ``refused``, by code.

    ``runner_up``: where it would have gone otherwise.
    """

    node_id: str
    strategy: Strategy
    score: float
    considered: int
    fitting: int
    refused: dict[str, int]
    runner_up: str


class Verdict(Record):
    """What placement says of one node. ``rank`` counts from 1 among those that fit; ``code`` is the first rule that it does not pass."""

    node_id: str
    fits: bool
    rank: int | None = None
    score: float | None = None
    crowded: bool = False
    far: bool = False
    code: str = ""
    reason: str = ""


def score(candidate: Candidate, strategy: Strategy) -> float:
    """How good a node is, the greater the better; comparable for one strategy only."""
    match strategy:
        case "spread":
            return candidate.free_share
        case "pack":
            return 1 - candidate.free_share
        case "affinity":
            return candidate.present + candidate.free_share


def _order(candidate: Candidate, need: Need) -> tuple[bool, bool, float, str]:
    """What the best has the least of."""
    return candidate.far, candidate.crowded(need), -score(candidate, need.strategy), candidate.node_id


def _failed(candidate: Candidate, need: Need) -> int:
    """Which rule it does not pass; ``len(RULES)`` when it fits."""
    return next((at for at, rule in enumerate(RULES) if not rule.passes(candidate, need)), len(RULES))


def decide(candidates: Sequence[Candidate], need: Need) -> Decision:
    """The node and why. Raises ``Refused`` naming the first rule that nobody passed."""
    stages = [_failed(candidate, need) for candidate in candidates]
    fitting = [c for c, stage in zip(candidates, stages, strict=True) if stage == len(RULES)]
    if not fitting:
        furthest = max(stages, default=0)
        raise RULES[furthest].refuse([c for c, stage in zip(candidates, stages, strict=True) if stage == furthest], need)
    best, *others = sorted(fitting, key=lambda c: _order(c, need))
    refused = Counter(RULES[stage].say(c, need)[0] for c, stage in zip(candidates, stages, strict=True) if stage < len(RULES))
    return Decision(
        node_id=best.node_id,
        strategy=need.strategy,
        score=round(score(best, need.strategy), 4),
        considered=len(candidates),
        fitting=len(fitting),
        refused=dict(sorted(refused.items())),
        runner_up=others[0].node_id if others else "",
    )


def choose(candidates: Sequence[Candidate], need: Need) -> str:
    """The node's id. Raises ``Refused`` as :func:`decide`."""
    return decide(candidates, need).node_id


def explain(candidates: Sequence[Candidate], need: Need) -> list[Verdict]:
    """What is to be said of each node, by id."""
    fitting = sorted((c for c in candidates if _failed(c, need) == len(RULES)), key=lambda c: _order(c, need))
    ranks = {c.node_id: rank for rank, c in enumerate(fitting, 1)}
    return [_verdict(c, need, ranks.get(c.node_id)) for c in sorted(candidates, key=lambda c: c.node_id)]


def _verdict(candidate: Candidate, need: Need, rank: int | None) -> Verdict:
    if rank is None:
        code, reason = RULES[_failed(candidate, need)].say(candidate, need)
        return Verdict(node_id=candidate.node_id, fits=False, code=code, reason=reason)
    return Verdict(
        node_id=candidate.node_id,
        fits=True,
        rank=rank,
        score=round(score(candidate, need.strategy), 4),
        crowded=candidate.crowded(need),
        far=candidate.far,
    )


def require_known(nodes: Sequence[str], known: Collection[str]) -> None:
    """Raises ``node.not-found`` for the first of ``nodes`` that nobody has enrolled."""
    unknown = next((node for node in nodes if node not in known), None)
    if unknown is not None:
        raise not_found("node", unknown)
