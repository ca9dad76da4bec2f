"""How far a build is: counted by the threads that do the work, told to the caller a few times a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from domain.nodes.orders import BuildProgress

PULLING: Final = "PULLING"
UNPACKING: Final = "UNPACKING"
BUILDING_EXT4: Final = "BUILDING_EXT4"

_EVERY_S: Final = 0.25

Tell = Callable[[BuildProgress], None]


class Meter:
    """Counts bytes and layers of one phase after the other. ``bytes_per_s`` is the mean over the phase so far.

    The first and the last figure of a phase are always told, in between at most four a second.
    """

    def __init__(self, tell: Tell | None, clock: Callable[[], float] = monotonic) -> None:
        self._tell = tell or (lambda _progress: None)
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ""
        self._bytes = self._total = self._layers = self._total_layers = 0
        self._began = self._told = 0.0

    def phase(self, name: str, total_bytes: int, total_layers: int) -> None:
        with self._lock:
            self._phase = name
            self._bytes, self._total = 0, total_bytes
            self._layers, self._total_layers = 0, total_layers
            self._began = self._clock()
            self._report()

    def add(self, count: int) -> None:
        """``count`` more bytes; negative when a download begins anew."""
        with self._lock:
            self._bytes += count
            if self._clock() - self._told >= _EVERY_S:
                self._report()

    def reach(self, count: int) -> None:
        """The phase is at ``count`` bytes; never goes back."""
        with self._lock:
            missing = count - self._bytes
        if missing > 0:
            self.add(missing)

    def layer(self) -> None:
        with self._lock:
            self._layers += 1
            self._report()

    def done(self) -> None:
        """The phase is complete: all bytes and layers are there, whatever was estimated."""
        with self._lock:
            self._bytes, self._layers = self._total, self._total_layers
            self._report(fraction=1)

    def _report(self, fraction: float | None = None) -> None:
        self._told = self._clock()
        elapsed = self._told - self._began
        if fraction is None:
            fraction = min(max(self._bytes / self._total, 0), 1) if self._total else 0
        self._tell(
            BuildProgress(
                phase=self._phase,
                fraction=round(fraction, 4),
                bytes=max(self._bytes, 0),
                total_bytes=self._total,
                layers=self._layers,
                total_layers=self._total_layers,
                bytes_per_s=int(max(self._bytes, 0) / elapsed) if elapsed > 0 else 0,
            )
        )
