"""Reports on their way from nodes to the control plane: stored once however often they are sent, handled until an aggregate answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from bus import subjects
from bus.reader import Delivery, Item, Reader, Work, ensure_consumer
from bus.requests import WITHIN_S, Ack, store
from domain.nodes.orders import Report

REPORT_WORK: Final = Work(limit=1024, parallel=64, tries=10, ack_wait=30)
DURABLE: Final = "control"


async def report(nc: Client, report: Report, *, within: float = WITHIN_S) -> Ack:
    """Send a report and wait until it is stored; the same id again, within two minutes, changes nothing.

    Raises ``Refused`` (``bus.unavailable``, retryable) when nobody said within ``within`` seconds whether it is stored: keep it and send
    it again.
    """
    return await store(nc, subjects.report(report.node, report.kind), report.model_dump_json().encode(), msg_id=report.id, within=within)


class ReportReader(Reader[Report]):
    """The control plane's end: ``handle(report)`` for each report, those of one process in the order in which they were stored.

    A handler that returns has seen to it. ``Refused`` that is retryable, and anything unexpected, is tried again; what never works goes to
    ``DEAD``, and so does the report with any other ``Refused`` that the handler lets through. The control plane's lets none through: that
    is an aggregate's last word about a stale report, which happens every day and is only logged (``handlers/reports.py``).
    """

    def __init__(self, nc: Client, handle: Callable[[Report], Awaitable[None]], *, work: Work = REPORT_WORK) -> None:
        async def attach(fresh: bool) -> None:
            await ensure_consumer(nc, subjects.REPORTS, DURABLE, subjects.ALL_REPORTS, work, memory=False, fresh=fresh)

        async def accept(report: Report, _: Delivery[Report]) -> None:
            await handle(report)

        super().__init__(nc, subjects.REPORTS, DURABLE, attach, decode_report, accept, work)


def decode_report(message: Msg) -> Item[Report]:
    """The report in a message. Raises ``ValueError``, also when it speaks for another node than the one whose subject it came on.

    The subject is what the server let the node use; what the body says about its sender is only a claim (design.md §9).
    """
    try:
        said = Report.model_validate_json(message.data)
    except ValidationError as error:
        raise ValueError(f"not a report: {error.error_count()} faults, first {error.errors(include_input=False)[0]['msg']}") from None
    node, kind = message.subject.split(".")[2:]
    if (said.node, said.kind) != (node, kind):
        raise ValueError(f"a {said.kind} report of node {said.node[:64]!r} on the subject of node {node!r}, kind {kind!r}")
    return Item(said, f"{said.project}/{said.process}/{said.process_id or said.node}", said.id)
