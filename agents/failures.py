"""From exceptions to what a report says: a stable code, a text for people, and whether trying again can help."""

from __future__ import annotations

import errno
import uuid
from typing import Any, Final

import structlog

from agents.drivers.driver import RuntimeFault
from agents.fence import FencedError
from domain.kernel.errors import Refused
from domain.kernel.text import clip
from domain.nodes.orders import Failure

log = structlog.get_logger(__name__)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


SUPERSEDED: Final = Failure(code="sandbox.superseded", message="a destroy of the sandbox came first")


class FailedError(Exception):
    """An order, or a step of one, did not work. ``body`` is that of the ``FAILED`` report."""

    def __init__(self, failure: Failure, body: dict[str, Any] | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.body = body or {}


def fail(code: str, message: str, *, retryable: bool = False, **details: Any) -> FailedError:
    """The exception for a failure that this agent itself states."""
    return FailedError(Failure(code=code, message=message, retryable=retryable, details=details))


def failure_of(error: BaseException) -> Failure:
    """What to say about ``error``. What nobody expected is ``internal``, with an id under which the log has the rest."""
    match error:
        case FailedError():
            return error.failure
        case FencedError():
            return SUPERSEDED
        case RuntimeFault() | Refused():
            details = error.details if isinstance(error, Refused) else {}
            return Failure(code=error.code, message=_text(error), retryable=error.retryable, details=details)
        case TimeoutError():
            return Failure(code="order.deadline-exceeded", message="it took longer than it may", retryable=True)
        case OSError() if error.errno in _FULL:
            return Failure(code="node.disk-full", message="the node's disk is full", retryable=True)
        case _:
            return _internal(error)


def _internal(error: BaseException) -> Failure:
    incident = uuid.uuid4().hex[:12]
    log.error("internal", incident=incident, exc_info=error)
    return Failure(code="internal", message=f"unexpected, see incident {incident} in the agent's log", retryable=True)


def _text(error: Exception) -> str:
    return clip(str(error)) or type(error).__name__
