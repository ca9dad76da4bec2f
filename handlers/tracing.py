"""Spans of what a control plane does for a trace: answering a command, taking a report. Only there when somebody wants them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from bus.endpoints import Reply, Request
from bus.tracing import Tracing
from domain.nodes.orders import Report
from handlers import reports
from handlers.control import Control

Handle = Callable[[Request], Awaitable[Reply]]


def commands(tracing: Tracing, handle: Handle) -> Handle:
    """The same, each call in a span; what follows from the command is below it. Without a ``traceparent`` it begins a trace."""

    async def traced(request: Request) -> Reply:
        with tracing.span(request.name, request.trace, project=request.project, command_id=request.command_id) as trace:
            return await handle(replace(request, trace=trace))

    return traced


async def report(tracing: Tracing, control: Control, said: Report) -> None:
    """Take a report that belongs to a trace."""
    with tracing.span(f"report {said.verb} {said.kind}", said.trace, node=said.node, id=said.process_id) as trace:
        await reports.take(control, said.model_copy(update={"trace": trace}))
