"""How many examples a property is tried with: few in ``make quick``, more everywhere else. ``STRAND_EXAMPLES`` names the profile."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PROFILES = {"quick": 5, "ci": 40, "night": 1000}
"""Examples of a property that does not say how many it wants."""
UNTIMED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
"""What a loaded machine does to an example's time says nothing about the code."""


def load() -> None:
    """Make the profiles known, and use the one that the environment names. Raises ``KeyError``."""
    for name, examples in PROFILES.items():
        settings.register_profile(name, max_examples=examples, **UNTIMED)
    settings.load_profile(_name())


def times(factor: float) -> settings:
    """For a property that needs more examples than others, or is dearer."""
    return settings(max_examples=max(2, round(PROFILES[_name()] * factor)))


def _name() -> str:
    return os.environ.get("STRAND_EXAMPLES", "ci")
