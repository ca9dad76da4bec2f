"""What libraries may say while a command runs: nothing, unless somebody debugs."""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog


def quiet() -> None:
    """Let nothing on our streams but what we say ourselves: what stops us comes as a refusal. ``STRANDLINE_DEBUG`` shows it on stderr."""
    if os.environ.get("STRANDLINE_DEBUG"):
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    else:
        structlog.configure(processors=[_drop])


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent
