"""Things that came from each other, as a tree in lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from strandline.client.items import Lineage


def drawn(items: Iterable[Lineage], below: str | None = None) -> Iterator[dict[str, Any]]:
    """One row per thing, each under what it came from, the oldest first. ``below``: only that one and what came of it."""
    known = {item.id: item for item in items}
    children: dict[str | None, list[Lineage]] = {}
    for item in sorted(known.values(), key=lambda one: (str(one.created_at), one.id)):
        children.setdefault(item.parent_id if item.parent_id in known else None, []).append(item)
    roots = children.get(None, []) if below is None else [known[below]] if below in known else []
    for root in roots:
        yield from _rows(root, children, "", "")


def _rows(item: Lineage, children: dict[str | None, list[Lineage]], first: str, then: str) -> Iterator[dict[str, Any]]:
    """``first`` stands before the item itself, ``then`` before what is under it. Not by recursion: a past can be long."""
    stack = [(item, first, then)]
    while stack:
        item, first, then = stack.pop()
        yield {**item.model_dump(mode="json"), "tree": first + item.id}
        under = children.get(item.id, [])
        last = len(under) - 1
        stack += [
            (child, f"{then}{'└─ ' if n == last else '├─ '}", f"{then}{'   ' if n == last else '│  '}") for n, child in enumerate(under)
        ][::-1]
