"""Logs: one JSON object a line, on stderr, for every process alike. Bodies and secrets are never logged, ids and codes are."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO, cast

import structlog


class _Lossy:
    """A stream that loses lines where the disk has no room for them: what is logged must not fail of being logged."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._inner.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._inner.flush()


def configure(level: int = logging.INFO) -> None:
    """Set structlog up, and send what libraries log the same way."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lossy(sys.stderr))),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format='{"event": "%(message)s", "level": "%(levelname)s"}')
