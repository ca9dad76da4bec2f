"""What a projector says of its views (reference/cubesandbox.md §7 has nothing like it: there is no log there)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bus.metrics import Metrics, Sample

FAMILIES: Final = {
    "strandline_view_position": ("gauge", "How far a view has read the log."),
    "strandline_view_generation": ("gauge", "Which generation of a view is live; grows with every rebuild."),
    "strandline_view_broken": ("gauge", "1 for a view that stopped at an event that it cannot apply."),
}


def metrics(states: Callable[[], Sequence[dict[str, Any]]]) -> Metrics:
    """``states``: what ``views.list`` answers, looked up whenever somebody asks."""

    def now() -> Iterable[Sample]:
        for state in states():
            labels = {"view": state["view"]}
            yield "strandline_view_position", labels, state["position"]
            yield "strandline_view_generation", labels, state["generation"] or 0
            yield "strandline_view_broken", labels, state["state"] == "broken"

    return Metrics(FAMILIES, now)
