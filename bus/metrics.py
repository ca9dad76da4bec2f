"""What one process counts and measures, in the text format of Prometheus, on a port of this machine only. Off unless asked for.

A format of a few lines is no reason for a dependency: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Final

import structlog

log = structlog.get_logger(__name__)

LOOPBACK: Final = "127.0.0.1"
ASKING_S: Final = 5.0
"""How long somebody may take to say what they want."""
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

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(ASKING_S):
                asked = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                wanted = asked[:2] == [b"GET", b"/metrics"]
                body = metrics.text().encode() if wanted else b"GET /metrics\n"
                head = f"HTTP/1.1 {'200 OK' if wanted else '404 Not Found'}\r\nContent-Type: {CONTENT}\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, port)
    bound: int = server.sockets[0].getsockname()[1]
    log.info("metrics.serving", address=f"{LOOPBACK}:{bound}")
    async with server:
        yield bound
