"""The watchdog: every few minutes the node says what it holds, so that the control plane can tell what of that is nobody's.

Copies of artifacts are looked for every week, and once an hour, at the start too, when the disk is full to 80 %: pressure changes when that
runs, never what may go (reference/miren-sandbox.md §7.1, §7.2). One loop, so that two looks never overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from agents.holdings import holdings
from agents.node import LocalNode
from agents.watching import ensure_watched
from domain.nodes.orders import Observation
from domain.nodes.sweeps import Trigger

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """``look_s``: between two looks at sandboxes. ``pressure_pct``: so full a disk is pressed, exactly so full too."""

    look_s: float = 300
    collect_every: timedelta = timedelta(hours=168)
    pressure_every: timedelta = timedelta(hours=1)
    pressure_pct: float = 80.0


class Watchdog:
    """``fullness``: of the disk, in percent. ``boot`` makes what it says its own."""

    def __init__(self, node: LocalNode, boot: str, fullness: Callable[[], float], rhythm: Rhythm | None = None) -> None:
        self._node = node
        self._boot = boot
        self._fullness = fullness
        self._rhythm = rhythm or Rhythm()
        self._looked: datetime | None = None
        self._checked: datetime | None = None

    async def run(self) -> None:
        """Look at once and then every ``look_s``, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("watchdog.failed")
            await asyncio.sleep(self._rhythm.look_s)

    async def look(self) -> None:
        """Say what is held now, and see to it that everything that runs is watched."""
        trigger = self._trigger()
        held = await holdings(self._node, trigger, artifacts=trigger in {"schedule", "pressure"})
        for name in held.sandboxes:
            ensure_watched(self._node, name)
        name = f"{self._boot}:{held.at.timestamp():.6f}"
        self._node.reporter.observe(Observation.HOLDINGS, held.model_dump(mode="json"), name)
        if held.artifacts is not None:
            self._note.write_text(held.at.isoformat())

    def _trigger(self) -> Trigger:
        """Why this look happens; artifacts are looked for in those that were for them."""
        now, first = self._node.clock(), self._looked is None
        self._looked = now
        if now - self._collected() >= self._rhythm.collect_every:
            return "schedule"
        if self._checked is None or now - self._checked >= self._rhythm.pressure_every:
            self._checked = now
            if self._fullness() >= self._rhythm.pressure_pct:
                return "pressure"
        return "start" if first else "timer"

    @property
    def _note(self) -> Path:
        """When artifacts were last looked for, so that a restart of the agent does not put off the next time."""
        return self._node.directory / "collected"

    def _collected(self) -> datetime:
        try:
            return datetime.fromisoformat(self._note.read_text())
        except (FileNotFoundError, ValueError):
            self._note.write_text(self._node.clock().isoformat())
            return self._node.clock()
