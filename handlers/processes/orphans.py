"""What of a node's holdings is nobody's, by the log (reference/miren-sandbox.md §7.1, §7.2), and having the node take it away.

The node has listed before the log is read here, up to its end: whatever was made on the node by then was in the log before. A sandbox that
lives is looked at itself, in case it was placed elsewhere; an artifact is always looked at itself. Any doubt keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

from bus.requests import call
from bus.subjects import EVENTS
from domain.kernel.ids import ARTIFACT_PATTERN, SYSTEM_PROJECT
from domain.nodes.orders import Order, Verb
from domain.nodes.sweeps import AT_MOST, GRACE, UNKNOWN_COPY, Holdings, NodeSweep, Removal, Trigger, Why
from domain.sandboxes.sandbox import Sandbox
from domain.templates.artifact import Artifact, ArtifactState
from handlers.control import Control

ARTIFACT_ID: Final = re.compile(ARTIFACT_PATTERN)
"""Anything else in a node's cache is foreign, and stays (reference/miren-sandbox.md §7.2)."""
SWEEP_S: Final = 180.0
"""Until when a node must have begun a sweep: the next one knows better."""


async def judge(control: Control, node_id: str, held: Holdings, trigger: Trigger | None = None) -> NodeSweep:
    """What the node is to take away; nothing when it could not list everything. At most ``AT_MOST`` of each kind, the rest next time."""
    trigger = trigger or held.trigger
    if held.unlisted:
        return NodeSweep(at=held.at, trigger=trigger)
    await _read_up(control)
    sandboxes = [(name, await _sandbox(control, node_id, name)) for name in sorted({*held.sandboxes, *held.strangers})]
    artifacts = [(name, await _artifact(control, held, name)) for name in sorted(held.artifacts or ())]
    return NodeSweep(at=held.at, trigger=trigger, sandboxes=_first(sandboxes), artifacts=_first(artifacts))


def _first(judged: Iterable[tuple[str, Why | None]]) -> dict[str, Why]:
    return dict(islice(((name, why) for name, why in judged if why is not None), AT_MOST))


async def _read_up(control: Control) -> None:
    """Until the index has folded everything that was in the log when this was asked."""
    said = await call(control.nc, f"STREAM.INFO.{EVENTS}", {})
    await control.fleet.reached(int(said["state"]["last_seq"]))


async def _sandbox(control: Control, node_id: str, name: str) -> Why | None:
    """Why it is nobody's on this node; None when somebody may still want it."""
    live = control.fleet.sandboxes.get(name)
    if live is not None:
        if live.node_id == node_id:
            return None
        found = await control.find(Sandbox, live.project, name)
        return None if found is None or found.node_id == node_id else "elsewhere"
    dead = control.fleet.dead.get(name)
    if dead is None:
        return "unknown"
    return "dead" if control.clock() - dead.since > GRACE else None


async def _artifact(control: Control, held: Holdings, name: str) -> Why | None:
    """The same for a copy. One that the log does not know may be of a build that is just being told, unless it is old."""
    if ARTIFACT_ID.fullmatch(name) is None or held.artifacts is None:
        return None
    known = await control.find(Artifact, SYSTEM_PROJECT, name)
    if known is None:
        return "unknown" if held.at - held.artifacts[name] >= UNKNOWN_COPY else None
    return "deleted" if known.state is ArtifactState.DELETED else None


def order(control: Control, node_id: str, sweep: NodeSweep, salt: str) -> Order:
    """The order to take it away. ``salt`` tells this sweep from others."""
    body, key = sweep.model_dump(mode="json"), f"node/{node_id}"
    return control.new_order(Verb.NODE_SWEEP, SYSTEM_PROJECT, ("node", node_id), body, key=key, salt=salt, deadline_s=SWEEP_S)


def removals(sweep: NodeSweep) -> tuple[Removal, ...]:
    """What the order names, as a dry run tells it."""
    gone = [Removal(kind="sandbox", id=name, why=why) for name, why in sweep.sandboxes.items()]
    return (*gone, *(Removal(kind="artifact", id=name, why=why) for name, why in sweep.artifacts.items()))
