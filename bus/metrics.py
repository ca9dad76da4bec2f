"""What one process counts and measures, in the text format of Prometheus, on a port of this machine only. Off unless asked for.

A format of a few lines is no reason for a dependency: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

import structlog

from bus import http
from bus.http import Answer, Asked

log = structlog.get_logger(__name__)

CONTENT: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, Mapping[str, str], float]
"""Name, labels, value."""
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """``families``: name -> (``counter``, ``gauge`` or ``summary``, what it is). Gauges are looked up when somebody asks."""

    def __init__(self, families: Mapping[str, tuple[str, str]], gauges: Callable[[], Iterable[Sample]] = list) -> None:
        self._families = families
        self._gauges = gauges
        self._counts: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in families}
        self._took: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in families}

    def add(self, name: str, **labels: str) -> None:
        """Count one more. Raises ``KeyError`` for a family that was not declared."""
        self._counts[name][tuple(labels.items())] += 1

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Measure, for a ``summary``: how often, and how long altogether."""
        self.add(name, **labels)
        self._took[name][tuple(labels.items())] += seconds

    def text(self) -> str:
        """Everything, by family; a family of which nothing is known is left out."""
        gauges: dict[str, list[str]] = defaultdict(list)
        for name, given, value in self._gauges():
            gauges[name].append(_line(name, tuple(given.items()), value))
        lines: list[str] = []
        for name, (kind, about) in self._families.items():
            counted = f"{name}_count" if kind == "summary" else name
            found = [_line(counted, labels, value) for labels, value in self._counts[name].items()]
            found += [_line(f"{name}_sum", labels, value) for labels, value in self._took[name].items()] + gauges[name]
            if found:
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *found]
        return "\n".join([*lines, ""])


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.10g}" if shown else f"{name} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextlib.asynccontextmanager
async def serving(metrics: Metrics, port: int) -> AsyncIterator[int]:
    """``GET /metrics`` on the loopback address while the block runs; the port, which is a free one for 0. Raises ``OSError``."""

    async def answer(asked: Asked) -> Answer:
        if asked.path != "/metrics":
            return http.plain(HTTPStatus.NOT_FOUND, "GET /metrics")
        return Answer(HTTPStatus.OK, {"Content-Type": CONTENT}, metrics.text().encode())

    async with http.serving(answer, port) as bound:
        log.info("metrics.serving", address=f"{http.LOOPBACK}:{bound}")
        yield bound
