"""The way of a report: believed or not, handed to its verb's function, and on to a caller who waits for it."""

from __future__ import annotations

from typing import Final

import structlog

from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Liveness, Node
from domain.nodes.orders import Report, ReportKind, Verb
from handlers.control import Control, because, digest_of
from handlers.reporting import nodes, sandboxes, templates
from handlers.reporting.taking import Taker

log = structlog.get_logger(__name__)

TAKERS: Final[dict[str, Taker]] = {**templates.TAKERS, **sandboxes.TAKERS, **nodes.TAKERS}
AWAITED: Final = frozenset({Verb.SANDBOX_EXEC, Verb.NODE_INSPECT})
"""Verbs whose final report a handler waits for."""


async def take(control: Control, report: Report) -> None:
    """Take one report. Raises what should make the bus deliver it again; what is stale or refused for good is only logged."""
    taker = TAKERS.get(report.verb)
    if not await _believed(control, report):
        log.warning("report.refused", verb=report.verb, node=report.node)
        return
    command, actor = digest_of(report.id), f"node:{report.node}"
    cause = Cause(command, command, actor, report.project, control.clock(), report.cause, report.trace)
    try:
        with because(report.cause, report.trace):
            if taker is not None:
                await taker(control, report, cause)
    except Refused as refusal:
        if refusal.retryable:
            raise
        log.info("report.stale", verb=report.verb, node=report.node, id=report.process_id, code=refusal.code)
    if report.verb in AWAITED and report.kind in {ReportKind.DONE, ReportKind.FAILED}:
        await control.results.publish(report)


async def _believed(control: Control, report: Report) -> bool:
    """Only nodes that are enrolled have a say. The log decides where the index says no: it may not have got as far as the enrolment."""
    node = control.fleet.nodes.get(report.node)
    if node is not None and not node.evicted:
        return True
    known = await control.find(Node, SYSTEM_PROJECT, report.node)
    return known is not None and known.liveness is not Liveness.EVICTED
