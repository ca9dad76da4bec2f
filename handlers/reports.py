"""The way of a report: believed or not, handed to its verb's function, and on to a caller who waits for it."""

from __future__ import annotations

from typing import Final

import structlog
from pydantic import ValidationError

from domain.kernel.command import Cause
from domain.kernel.errors import Refused
from domain.kernel.ids import SYSTEM_PROJECT
from domain.nodes.node import Liveness, Node
from domain.nodes.orders import Report, ReportKind, Verb
from handlers.control import Control, because, digest_of
from handlers.reporting import disks, nodes, sandboxes, templates
from handlers.reporting.taking import Taker

log = structlog.get_logger(__name__)

TAKERS: Final[dict[str, Taker]] = {**templates.TAKERS, **sandboxes.TAKERS, **nodes.TAKERS, **disks.TAKERS}
AWAITED: Final = frozenset({Verb.SANDBOX_EXEC, Verb.NODE_INSPECT, Verb.NODE_LIST, Verb.NODE_SWEEP})
"""Verbs whose final report a handler waits for."""


async def take(control: Control, report: Report) -> None:
    """Take one report. Raises what should make the bus deliver it again; what is stale or refused for good is only logged.

    Raises ``report.invalid`` for one that cannot be read, now or ever: it goes to ``DEAD`` at once, and holds nobody up.
    """
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
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        why = f"{report.kind} of {report.verb[:64]}: {error.error_count()} faults, first: {first['loc']}: {first['msg']}"
        raise Refused("report.invalid", why) from None
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
