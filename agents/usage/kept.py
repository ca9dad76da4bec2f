"""Baselines over the end of the agent: a small file, written at times, not synced. Without it counters begin with what the kernel says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from agents.usage.sampler import Baseline, Series


def keep(path: Path, series: Mapping[str, Series]) -> None:
    """Write down how far everything was counted; whole or not at all. Raises ``OSError``."""
    known = {name: [one.base.generation, one.base.cpu_us, one.base.kernel_us, one.base.seen] for name, one in series.items()}
    draft = path.with_suffix(".new")
    draft.write_bytes(orjson.dumps(known))
    os.replace(draft, path)  # noqa: PTH105  # no sync: after a power failure nothing runs that it tells of


def kept(path: Path) -> dict[str, Baseline]:
    """What an earlier process wrote; nothing when there is none, or it cannot be read."""
    try:
        known = orjson.loads(path.read_bytes())
        return {name: _baseline(*said) for name, said in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _baseline(generation: int, cpu_us: int, kernel_us: int, seen: Mapping[str, Any]) -> Baseline:
    return Baseline(int(generation), int(cpu_us), int(kernel_us), {name: (int(cpu), int(kernel)) for name, (cpu, kernel) in seen.items()})
