"""``placement.explain``: what placement says of each node, for a sandbox that is there or one that might be. Nothing comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from bus.endpoints import Reply, Request
from domain.kernel.errors import Refused
from domain.nodes.placement import Candidate, Need, explain
from domain.sandboxes.placed import Placed
from domain.sandboxes.questions import PLACEMENT_EXPLAIN, PlacementExplain
from domain.sandboxes.sandbox import Sandbox
from domain.templates.snapshot import Snapshot
from domain.templates.template import Template
from handlers.commands.aliases import resolve_template
from handlers.control import Control
from handlers.placing import Wish, for_snapshot, for_template

QUERIES: Final[Mapping[str, Sequence[str]]] = {"placement": ("explain",)}
"""What the control plane answers; everything else is the projector's."""
BEHIND_S: Final = 5.0
SEEN: Final = {
    "labels",
    "free_cpu",
    "free_memory_mb",
    "free_sandboxes",
    "present",
    "compat",
    "status",
}
"""What an answer shows of a candidate, beside its verdict."""


async def answer(control: Control, request: Request) -> Reply:
    """Answer one query. Raises ``Refused``."""
    if request.name != PLACEMENT_EXPLAIN:
        raise Refused("query.unknown", f"there is no query {request.name!r}", details={"nearest": [PLACEMENT_EXPLAIN]})
    question = PlacementExplain.parse(request.body)
    await _reached(control, question.min_seq)
    candidates, need, here = await _asked(control, request.project, question)
    known = {c.node_id: c for c in candidates}
    verdicts = [v for v in explain(candidates, need) if question.cursor is None or v.node_id > question.cursor]
    page = verdicts[: question.limit]
    items = [{**v.model_dump(), "here": v.node_id == here, **known[v.node_id].model_dump(include=SEEN)} for v in page]
    following = page[-1].node_id if len(verdicts) > len(page) else None
    return Reply({"items": items, "next": following}, seq=control.fleet.seq)


async def _reached(control: Control, seq: int) -> None:
    try:
        async with asyncio.timeout(BEHIND_S):
            await control.fleet.reached(seq)
    except TimeoutError:
        raise Refused("view.behind", f"the fleet index has not read up to {seq} yet", retryable=True) from None


async def _asked(control: Control, project: str, question: PlacementExplain) -> tuple[list[Candidate], Need, str | None]:
    """The nodes, what is needed of them, and where the sandbox is that was asked about."""
    if question.sandbox_id is not None:
        return await _of_sandbox(control, project, question)
    strategy = question.strategy or "spread"
    if question.snapshot_id is not None:
        snapshot = await control.get(Snapshot, project, question.snapshot_id)
        template = await control.find(Template, project, snapshot.template_id)
        recipe, driver = snapshot.recipe, snapshot.driver or (None if template is None else template.request.driver)
        candidates = for_snapshot(control, snapshot, strategy)
    else:
        template = await resolve_template(control, project, question.template or "")
        if template.recipe is None:
            raise Refused("template.not-pulled", f"nothing is known yet of what template {template.id} needs", retryable=True)
        recipe, driver = template.recipe, template.request.driver
        candidates = for_template(control, template, strategy)
    bounds = tuple(name for name in ("cpu", "memory_mb") if getattr(question, name) is not None)
    wish = Wish(question.node, question.node_labels, strategy, bounds)
    size = question.cpu or recipe.cpu, question.memory_mb or recipe.memory_mb
    return candidates, wish.need(*size, question.driver or driver), None


async def _of_sandbox(control: Control, project: str, question: PlacementExplain) -> tuple[list[Candidate], Need, str | None]:
    """As it would be judged if it were created now: by what its caller had asked for, unless the question says otherwise."""
    sandbox = await control.get(Sandbox, project, question.sandbox_id or "")
    placed = sandbox.placed or Placed()
    strategy = question.strategy or placed.strategy
    recipe = sandbox.spec.recipe
    snapshot = None if sandbox.spec.snapshot_id is None else await control.find(Snapshot, project, sandbox.spec.snapshot_id)
    if snapshot is not None:
        candidates = for_snapshot(control, snapshot, strategy)
    else:
        template = await control.get(Template, project, sandbox.spec.template_id)
        candidates = for_template(control, template, strategy)
    if sandbox.id in control.fleet.sandboxes:
        candidates = [_without(c, sandbox) if c.node_id == sandbox.node_id else c for c in candidates]
    wish = Wish(question.node or placed.node, question.node_labels or placed.node_labels, strategy)
    size = question.cpu or recipe.cpu, question.memory_mb or recipe.memory_mb
    return candidates, wish.need(*size, question.driver or sandbox.spec.driver), sandbox.node_id


def _without(candidate: Candidate, sandbox: Sandbox) -> Candidate:
    """The node as if the sandbox were not there."""
    recipe = sandbox.spec.recipe
    free = {
        "free_cpu": candidate.free_cpu + recipe.cpu,
        "free_memory_mb": candidate.free_memory_mb + recipe.memory_mb,
        "free_sandboxes": None if candidate.free_sandboxes is None else candidate.free_sandboxes + 1,
        "present": max(0, candidate.present - 1),
    }
    return candidate.model_copy(update=free)
