"""The one place that knows which tests root alone can run: those marked ``root``. Others than root skip them, by name, and count them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

ROOT = os.geteuid() == 0
REASON = "needs root"


def skip_what_needs_root(items: Iterable[pytest.Item]) -> None:
    if not ROOT:
        for item in items:
            if item.get_closest_marker("root") is not None:
                item.add_marker(pytest.mark.skip(reason=REASON))


def tell(terminal: pytest.TerminalReporter) -> None:
    """Which tests were not run for want of rights, and how many."""
    skipped = [report.nodeid for report in terminal.stats.get("skipped", []) if REASON in str(report.longrepr)]
    if skipped:
        terminal.section("tests that need root")
        for name in sorted(skipped):
            terminal.line(name)
        terminal.line(f"{len(skipped)} tests need root and were skipped")
