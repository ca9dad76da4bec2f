"""A knob for fault tests: ``STRAND_CRASH_AT=<point>:before|after`` kills the agent there, as ``kill -9`` would.

Points are the names of steps (``start``), their undos (``undo-start``), places on the way of a snapshot to the shared store and back
(``export-chunk``, ``fetch-chunk`` …, only ``after``), what is given from stock (``give-root`` …, only ``after``), verbs of orders
(``artifact-build``), phases of a build (``unpacking``, only ``told``) and ``report``, which is that of an order's end. ``before``: the
journal knows that it begins and it has had no effect; ``after``: it has had its effect and the journal does not know. Several are separated
by commas. Each happens once per data directory, so that the agent's next start is a recovery: ``<dir>/crashed`` says what happened.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

VARIABLE: Final = "STRAND_CRASH_AT"


class CrashPoints:
    """The points at which this process dies; normally none."""

    def __init__(self, directory: Path, wanted: str | None = None) -> None:
        self._mark = directory / "crashed"
        text = os.environ.get(VARIABLE, "") if wanted is None else wanted
        self._points = frozenset(filter(None, text.split(",")))

    def here(self, point: str) -> None:
        """Die, if this is the place and it has not happened yet."""
        if point not in self._points:
            return
        seen = self._mark.read_text().splitlines() if self._mark.exists() else []
        if point not in seen:
            self._mark.write_text("\n".join([*seen, point]))
            os.kill(os.getpid(), signal.SIGKILL)
