"""How full a node's disk is, as far as it matters: what may still be written there."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final


class StorageMode(StrEnum):
    """What a node's disk still allows (reference/cubesandbox.md §5.7)."""

    HEALTHY = "healthy"
    WARN = "warn"
    REJECT = "reject"
    DELETE_ONLY = "delete_only"
    UNKNOWN = "unknown"


STORAGE_LIMITS: Final = ((95.0, StorageMode.DELETE_ONLY), (85.0, StorageMode.REJECT), (70.0, StorageMode.WARN))

STRICTNESS: Final = {mode: rank for rank, mode in enumerate(StorageMode)}
"""How little a mode allows, the least last: healthy, warn, reject, delete_only, unknown."""


def storage_mode(pct: float | None) -> StorageMode:
    """The mode for a usage in percent; what is not known or not a number allows nothing."""
    if pct is None or math.isnan(pct):
        return StorageMode.UNKNOWN
    return next((mode for limit, mode in STORAGE_LIMITS if pct >= limit), StorageMode.HEALTHY)
