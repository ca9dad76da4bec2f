"""Target selection: on which nodes a template is made ready (reference/cubesandbox.md §3.4).

Cordoned nodes are targets too: cordoning only stops new sandboxes. A scope is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from domain.kernel.errors import Refused


def select_targets(scope: Sequence[str], healthy: Collection[str]) -> tuple[str, ...]:
    """The nodes of ``scope``, or all healthy ones when it is empty; sorted.

    Raises ``node.not-found`` naming every node of the scope that is not among the healthy, or ``template.no-nodes`` when none is left.
    """
    missing = sorted(set(scope) - set(healthy))
    if missing:
        raise Refused("node.not-found", f"no healthy node {', '.join(missing)}", retryable=True, details={"nodes": missing})
    chosen = sorted(set(scope) or set(healthy))
    if not chosen:
        raise Refused("template.no-nodes", "no node is healthy", retryable=True)
    return tuple(chosen)


def first_targets(targets: Sequence[str], most: int | None, burden: Callable[[str], tuple[bool, int]]) -> tuple[str, ...]:
    """At most ``most`` of them, sorted: those with the smallest ``burden`` (closed to sandboxes?, number of replicas)."""
    return tuple(sorted(sorted(targets, key=lambda node: (*burden(node), node))[:most]))
