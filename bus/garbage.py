"""Python's collector of garbage, as it suits a process that serves: what a message makes goes by itself, and looking for cycles costs."""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (50_000, 20, 50)
"""Messages and items are many small objects without cycles, and looking for some costs a third of a replay."""


def look_rarely() -> None:
    """Never look at what is there already, which is there for ever, and seldom at what comes. For a process whose modules are loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
