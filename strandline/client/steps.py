"""The steps of a sandbox's start, out of the events of its provisioning."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from strandline.client.items import Item, LogEvent

WAITING: Final = "waiting"
"""The state of a step that has not begun; the others are those of the log: started, done, failed, undone, undo-failed."""


class Step(Item):
    """``took_s``: from its start to its end; None while it runs, and where the log has no end."""

    step: str
    state: str
    started_at: datetime | None = None
    took_s: float | None = None
    error: dict[str, Any] | None = None


def fold(events: Iterable[LogEvent]) -> list[Step]:
    """Every step that was planned or done, in that order, as it is after the last of the events."""
    steps: dict[str, Step] = {}
    for event in events:
        if event.type == "provisioning.begun":
            steps |= {name: Step(step=name, state=WAITING) for name in event.data.get("steps", ())}
        elif event.type == "provisioning.stepped":
            for told in event.data["steps"]:
                steps[told["step"]] = _told(steps.get(told["step"]) or Step(step=told["step"], state=WAITING), told)
    return list(steps.values())


def _told(step: Step, told: dict[str, Any]) -> Step:
    """What happened to one step."""
    at, state = datetime.fromisoformat(told["at"]), told["state"]
    if state == "started":
        return step.model_copy(update={"state": state, "started_at": step.started_at or at})
    ended = {"took_s": (at - step.started_at).total_seconds()} if state in {"done", "failed"} and step.started_at is not None else {}
    return step.model_copy(update={"state": state, "error": told.get("error") or step.error, **ended})
