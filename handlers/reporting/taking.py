"""What the functions that take reports share: their shape, and the reason in a failed report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from domain.kernel.command import Cause
from domain.nodes.orders import Failure, Report
from handlers.control import Control

Taker = Callable[[Control, Report, Cause], Awaitable[None]]
"""Lets an aggregate accept one report; what is stale records nothing (design.md §5)."""


def failure_of(report: Report) -> Failure:
    """Why it failed, as far as the node said."""
    return report.error or Failure(code="internal", message=f"{report.verb} failed without a reason", retryable=True)
