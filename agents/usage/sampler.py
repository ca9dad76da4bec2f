"""Sampling: once a second, one look at everything that runs here (reference/miren-sandbox.md §8.1).

What is sampled follows the node's records: a sandbox that runs is taken up at the next tick, one that does not is let go, and nothing has
to be told to begin or to end it. Counters only grow: another container, or one that counts from the beginning again, goes on where the
last one was, also over the end of the agent (``agents/usage/kept.py``); none ever goes down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from agents.drivers.driver import CanSample, Driver, Handle
from agents.host.counters import Counters

log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
"""How often, at most, everything is looked at."""
MOST: Final = 5_000
"""Sandboxes that are looked at; a node that has more says so once and leaves the others out."""
US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Subject:
    """A sandbox to be sampled: who has it, how to find it, and what series of it are labelled with."""

    sandbox_id: str
    driver: Driver
    handle: Handle
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Total:
    """A sandbox's containers together. ``cpu``: cores in use since the tick before; None at the first one."""

    cpu_s: float = 0
    kernel_s: float = 0
    cpu: float | None = None
    memory: int = 0
    peak: int = 0
    swap: int = 0
    swap_peak: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True)
class Baseline:
    """What has to be known to go on counting: the totals in microseconds, and what each container's counters were."""

    generation: int
    cpu_us: int = 0
    kernel_us: int = 0
    seen: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By container: processor time, and that in the kernel."""


@dataclass(slots=True)
class Series:
    """One sandbox's entry. ``total`` is None until it was read."""

    subject: Subject
    base: Baseline
    total: Total | None = None
    at: float | None = None
    """When it was read last, on the monotonic clock."""


class Sampler:
    """``subjects`` says at each tick what runs; ``clock`` gives monotonic seconds. ``known`` are baselines of an earlier agent process."""

    def __init__(
        self,
        subjects: Callable[[], Iterable[Subject]],
        *,
        clock: Callable[[], float] = time.monotonic,
        known: Mapping[str, Baseline] | None = None,
    ) -> None:
        self._subjects = subjects
        self._clock = clock
        self._known = dict(known or {})
        self._full = False
        self.series: dict[str, Series] = {}

    async def tick(self) -> None:
        """Follow what runs, and look at all of it once. One driver that fails does not stop the others."""
        self._follow()
        for driver, found in self._by_driver().items():
            try:
                seen = await asyncio.to_thread(driver.sample, [one.subject.handle for one in found])
            except Exception:
                log.exception("usage.unsampled", driver=type(driver).__name__)
                continue
            now = self._clock()
            for one in found:
                if containers := seen.get(one.subject.sandbox_id):
                    advance(one, containers, now)

    def _follow(self) -> None:
        wanted = {one.sandbox_id: one for one in self._subjects()}
        self._bound(wanted)
        for sandbox_id in self.series.keys() - wanted.keys():
            del self.series[sandbox_id]
        for sandbox_id, subject in wanted.items():
            known = self.series.get(sandbox_id)
            generation = subject.handle.generation
            if known is None:
                base = self._known.pop(sandbox_id, None) or Baseline(generation)
                known = self.series[sandbox_id] = Series(subject, base)
            known.subject = subject
            if known.base.generation != generation:  # what it counted stays; its containers are others
                known.base = Baseline(generation, known.base.cpu_us, known.base.kernel_us)

    def _bound(self, wanted: dict[str, Subject]) -> None:
        if len(wanted) > MOST and not self._full:
            log.warning("usage.too-many", sandboxes=len(wanted), most=MOST)
        self._full = len(wanted) > MOST
        for name in list(wanted)[MOST:]:
            del wanted[name]

    def _by_driver(self) -> dict[CanSample, list[Series]]:
        found: dict[CanSample, list[Series]] = {}
        for one in self.series.values():
            if isinstance(one.subject.driver, CanSample):
                found.setdefault(one.subject.driver, []).append(one)
        return found


def advance(one: Series, containers: Mapping[str, Counters], now: float) -> None:
    """Take in what was just read of its containers. What was not used since the last time is never taken back."""
    before = one.base
    cpu = sum(_grown(seen.cpu_us, before.seen, name, 0) for name, seen in containers.items())
    kernel = sum(_grown(seen.kernel_us, before.seen, name, 1) for name, seen in containers.items())
    seen = {name: (found.cpu_us, found.kernel_us) for name, found in containers.items()}
    one.base = Baseline(before.generation, before.cpu_us + cpu, before.kernel_us + kernel, seen)
    rate = None if one.at is None or now <= one.at else cpu / US / (now - one.at)
    peak = sum(found.peak or found.memory for found in containers.values())
    one.total = Total(
        cpu_s=one.base.cpu_us / US,
        kernel_s=one.base.kernel_us / US,
        cpu=rate,
        memory=sum(found.memory for found in containers.values()),
        peak=max(peak, one.total.peak if one.total else 0),
        swap=sum(found.swap for found in containers.values()),
        swap_peak=sum(found.swap_peak for found in containers.values()),
        pids=sum(found.pids for found in containers.values()),
    )
    one.at = now


def _grown(now: int, before: Mapping[str, tuple[int, int]], name: str, which: int) -> int:
    """By how much a counter has grown: a new container's by all that it says, one that went back by nothing."""
    known = before.get(name)
    return now if known is None else max(now - known[which], 0)
