"""May a node be taken out of service? Not if a template would then have no replica that sandboxes can start from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def stranded(node: str, usable: Mapping[str, Collection[str]]) -> list[str]:
    """Templates that only ``node`` keeps startable, sorted.

    ``usable``: template id -> nodes that are open for sandboxes and hold a ready replica of it that is not STALE. A template that cannot be
    started anywhere is not made worse.
    """
    return sorted(template for template, nodes in usable.items() if set(nodes) == {node})


def next_node(waiting: Iterable[str], usable: Mapping[str, Collection[str]]) -> tuple[str | None, list[str]]:
    """The first of ``waiting`` that strands nobody, or None and the templates in the way of all of them."""
    in_the_way: set[str] = set()
    for node in waiting:
        held = stranded(node, usable)
        if not held:
            return node, []
        in_the_way.update(held)
    return None, sorted(in_the_way)
