"""Hints: for each refusal that people meet, the next command to type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from domain.kernel.errors import Refused

Details = dict[str, Any]


def hint_for(refused: Refused) -> str | None:
    """One line that says what to do, or None where nobody knows."""
    make = HINTS.get(refused.code)
    if make is not None:
        return make(refused.details)
    noun, _, reason = refused.code.partition(".")
    if reason == "not-found":
        return f"strandline {noun} list" if noun in LISTABLE else None
    if reason == "illegal-state" and refused.details.get("allowed"):
        return f"allowed in: {', '.join(map(str, refused.details['allowed']))}"
    if refused.retryable and refused.details.get("settled"):
        return "try again, with another --idempotency-key if one was given"
    if refused.retryable:
        return "try again; with the same --idempotency-key nothing happens twice"
    return None


def _stale(details: Details) -> str:
    nodes = ",".join(map(str, details.get("nodes") or ()))
    return f"strandline template redo TEMPLATE --mode NODES --nodes {nodes}" if nodes else "strandline template redo TEMPLATE"


def _in_use(details: Details) -> str:
    live = details.get("sandboxes") or []
    return f"strandline sandbox delete {' '.join(map(str, live[:3]))}{' …' if len(live) > 3 else ''}" if live else "strandline sandbox list"


def _disk_taken(details: Details) -> str:
    disk, sandbox = details.get("disk", "DISK"), details.get("sandbox_id") or details.get("attached_to") or "SANDBOX"
    return f"strandline sandbox stop {sandbox} gives it back; strandline disk release {disk} --force deletes that sandbox"


def _timeout(details: Details) -> str:
    if "job_id" in details:
        return f"strandline job wait {details['job_id']}"
    if "sandbox_id" in details:
        return f"strandline sandbox wait {details['sandbox_id']}"
    return "raise --timeout"


def _describe(details: Details) -> str:
    return f"strandline sandbox describe {details.get('sandbox_id', 'SANDBOX')}"


def _say(text: str) -> Callable[[Details], str]:
    return lambda _: text


LISTABLE: Final = frozenset({"template", "job", "snapshot", "sandbox", "node", "artifact", "view", "context", "disk", "pool", "rollout"})
HINTS: Final[dict[str, Callable[[Details], str]]] = {
    "bus.unavailable": _say("is it running? strandline up; where it is: --dir DIR, --url URL or strandline context use NAME"),
    "bus.overloaded": _say("too many requests at once; try again"),
    "template.in-use": _in_use,
    "template.attempt-in-progress": _say("strandline job list status=RUNNING, then strandline job wait JOB; or --force to delete"),
    "template.no-ready-replica": _say("strandline template get TEMPLATE; strandline job list resource_id=TEMPLATE"),
    "template.stale-needs-redo": _stale,
    "template.no-nodes": _say("strandline node list: no node is ready to take it"),
    "template.no-failed-replicas": _say("nothing to redo; --mode ALL makes every replica again"),
    "snapshot.in-use": _say("strandline sandbox list snapshot_id=SNAPSHOT"),
    "disk.busy": _disk_taken,
    "disk.in-use": _disk_taken,
    "storage.blocked": _say("strandline node list -o wide; strandline artifact collect frees space"),
    "node.offline": _say("strandline node list; is its agent running?"),
    "capacity.exhausted": _say("strandline sandbox why --template … shows what is short; fewer --cpu and --memory, or delete sandboxes"),
    "sandbox.startup-failed": _describe,
    "sandbox.died": _describe,
    "sandbox.undo-blocked": _say("strandline sandbox abandon SANDBOX gives up and says what is left behind"),
    "command.invalid": _say("--help shows examples"),
    "command.mismatch": _say("this --idempotency-key was used for another command; choose a new one"),
    "wait.timeout": _timeout,
}
