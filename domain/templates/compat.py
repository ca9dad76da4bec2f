"""The compat rules: does a replica still fit what its node runs? Pure functions (reference/cubesandbox.md §6, acceptance scenario 24).

OK       guest image and agent are the ones it was made with.
STALE    one of them is known to differ. The only answer that keeps sandboxes from starting; a redo mends it.
UNKNOWN  one of them is not known, on either side. Sandboxes may start.
MISSING  the node has no ready replica: a cell of the matrix, never stored.

The kernel never counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from domain.kernel.aggregate import Record
from domain.nodes.orders import Versions


class Compat(StrEnum):
    OK = "OK"
    STALE = "STALE"
    UNKNOWN = "UNKNOWN"
    MISSING = "MISSING"


class Policy(StrEnum):
    """Which versions count. ``GUEST_ONLY``: the guest image alone."""

    STRICT = "STRICT"
    GUEST_ONLY = "GUEST_ONLY"


def known(version: str) -> str:
    """A version as it is compared: without blanks around it, and empty for "unknown" in any spelling."""
    trimmed = version.strip()
    return "" if trimmed.lower() == "unknown" else trimmed


def evaluate(bound: Versions, current: Versions | None, policy: str = Policy.STRICT) -> Compat:
    """Does a READY replica bound to ``bound`` fit a node that runs ``current``? None: nobody knows what it runs.

    Any policy but ``GUEST_ONLY`` is strict.
    """
    if current is None:
        return Compat.UNKNOWN
    pairs = [(known(bound.guest_image), known(current.guest_image))]
    if policy != Policy.GUEST_ONLY:
        pairs.append((known(bound.agent), known(current.agent)))
    if any(ours and theirs and ours != theirs for ours, theirs in pairs):
        return Compat.STALE
    return Compat.OK if all(ours and theirs for ours, theirs in pairs) else Compat.UNKNOWN


def when_offline(last: Compat) -> Compat:
    """What is left of a judgement when the node is not heard any more: OK becomes UNKNOWN, STALE stays STALE."""
    return Compat.UNKNOWN if last is Compat.OK else last


def judge(bound: Versions, reported: Versions, online: bool, policy: str = Policy.STRICT) -> Compat:
    """The judgement for a READY replica, ``reported`` being what its node ran when it was last heard."""
    judged = evaluate(bound, reported, policy)
    return judged if online else when_offline(judged)


def overall(cells: Iterable[Compat]) -> Compat:
    """A template's row in one word: STALE if any cell is, else the first that is not OK, in the order of the nodes."""
    listed = list(cells)
    if Compat.STALE in listed:
        return Compat.STALE
    return next((cell for cell in listed if cell is not Compat.OK), Compat.OK)


class CompatSummary(Record):
    """The matrix in numbers: cells by kind, rows with a stale cell, nodes with a stale cell."""

    stale_templates: int = 0
    stale_replicas: int = 0
    affected_nodes: int = 0
    missing_replicas: int = 0
    unknown_replicas: int = 0


def summarise(rows: Mapping[str, Mapping[str, Compat]]) -> CompatSummary:
    """Count ``rows``: template id -> node id -> cell."""
    cells = [(template, node, cell) for template, row in rows.items() for node, cell in row.items()]
    stale = [(template, node) for template, node, cell in cells if cell is Compat.STALE]
    return CompatSummary(
        stale_templates=len({template for template, _ in stale}),
        stale_replicas=len(stale),
        affected_nodes=len({node for _, node in stale}),
        missing_replicas=sum(cell is Compat.MISSING for _, _, cell in cells),
        unknown_replicas=sum(cell is Compat.UNKNOWN for _, _, cell in cells),
    )
