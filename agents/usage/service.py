"""The sampler at work on a node: what runs here, told to the bus every few seconds, and to Prometheus when it asks."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC
from itertools import count
from typing import Final

from agents.node import LocalNode
from agents.records import SandboxRecord
from agents.usage.kept import keep, kept
from agents.usage.sampler import TICK_S, Sampler, Subject, Total
from bus.metrics import Sample
from bus.usage import messages

FAMILIES: Final = {
    "strandline_cpu_usage_seconds_total": ("counter", "Processor time that a sandbox has used."),
    "strandline_memory_usage_bytes": ("gauge", "Memory that a sandbox uses."),
    "strandline_memory_peak_bytes": ("gauge", "The most memory that a sandbox has used."),
    "strandline_pids": ("gauge", "Processes in a sandbox."),
}
_COUNTED: Final = frozenset({"running", "paused", "replacing"})
"""While a sandbox is rolled back nothing of it can be read, and its counters wait."""
_NO_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")

Tell = Callable[[Iterator[bytes]], Awaitable[None]]


class Usage:
    """``tell`` says messages on the bus, or drops them when it is away; ``instance`` names this agent process."""

    def __init__(self, node: LocalNode, instance: str, tell: Tell) -> None:
        self._node = node
        self._instance = instance
        self._tell = tell
        self._path = node.directory / "usage.json"
        self._made: dict[str, tuple[SandboxRecord, Subject]] = {}
        self.sampler = Sampler(self._subjects, known=kept(self._path))

    async def run(self) -> None:
        """Sample, and tell, until cancelled."""
        tick = min(TICK_S, self._node.settings.usage_s)
        every = round(self._node.settings.usage_s / tick)
        for turn in count():
            await self.sampler.tick()
            if turn % every == 0:
                await self._say(every * tick)
            await asyncio.sleep(tick)

    def close(self) -> None:
        """Write down how far everything was counted."""
        with contextlib.suppress(OSError):
            keep(self._path, self.sampler.series)

    async def _say(self, every_s: float) -> None:
        self.close()
        rows = {name: _row(one.total) for name, one in self.sampler.series.items() if one.total is not None}
        at = self._node.clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        await self._tell(messages(self._instance, at, every_s, rows))

    def _subjects(self) -> Iterable[Subject]:
        """Made anew only for records that have changed: this is asked once a second."""
        drivers = {driver.name: driver for driver in self._node.drivers}
        made: dict[str, tuple[SandboxRecord, Subject]] = {}
        for record in self._node.memory.sandboxes.values():
            if record.condition in _COUNTED and record.handle is not None and not record.throwaway and record.driver in drivers:
                known = self._made.get(record.id)
                if known is None or known[0] is not record:
                    known = record, Subject(record.id, drivers[record.driver], self._node.handle(record), self._labels(record))
                made[record.id] = known
        self._made = made
        return [subject for _, subject in made.values()]

    def _labels(self, record: SandboxRecord) -> dict[str, str]:
        """A user's labels, and ours, which win (reference/miren-sandbox.md §8.1)."""
        ours = {"entity": record.id, "instance": self._instance, "node": self._node.name, "project": record.project, "kind": record.driver}
        return {label_name(key): value for key, value in sorted(record.spec.labels.items())} | ours

    def samples(self) -> Iterable[Sample]:
        """What Prometheus is told."""
        for one in self.sampler.series.values():
            if one.total is not None:
                labels = one.subject.labels
                yield "strandline_cpu_usage_seconds_total", labels, one.total.cpu_s
                yield "strandline_memory_usage_bytes", labels, one.total.memory
                yield "strandline_memory_peak_bytes", labels, one.total.peak
                yield "strandline_pids", labels, one.total.pids


def label_name(key: str) -> str:
    """A user's key as Prometheus has names of labels."""
    name = _NO_LABEL.sub("_", key)
    return f"_{name}" if name[0].isdigit() else name


def _row(total: Total) -> tuple[float | None, ...]:
    """In the order of ``bus.usage.COLUMNS``."""
    cpu = None if total.cpu is None else round(total.cpu, 4)
    return (
        round(total.cpu_s, 6),
        round(total.kernel_s, 6),
        cpu,
        total.memory,
        total.peak,
        total.swap,
        total.swap_peak,
        total.pids,
    )
