"""What is not run, and that somebody hears of it. Tests marked ``root`` are skipped by name for others than root; root runs everything.

As root every skip fails the run, except those that ``ALLOWED`` names: "with root nothing is skipped" is then true, and not only said.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import pytest
from support import unprivileged

ROOT = os.geteuid() == 0
REASON = "needs root"
ALLOWED: Final = (
    unprivileged.NO_PYTHON,
    "needs a second kind of file system",
    "no access control lists here",
    "networks need nft and a kernel that has them",
    "overlay mounts need root, and a file system that can be their upper",
)
"""Reasons that lie in the kernel, or in where the interpreter is: no package and no right mends them."""


def skip_what_needs_root(items: Iterable[pytest.Item]) -> None:
    if not ROOT:
        for item in items:
            if item.get_closest_marker("root") is not None:
                item.add_marker(pytest.mark.skip(reason=REASON))


def reasons(terminal: pytest.TerminalReporter) -> dict[str, list[str]]:
    """Why → the tests that were not run."""
    found: dict[str, list[str]] = defaultdict(list)
    for report in terminal.stats.get("skipped", []):
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found[told.removeprefix("Skipped: ")].append(report.nodeid)
    return dict(found)


def forbidden(skipped: Mapping[str, list[str]], *, root: bool | None = None) -> list[str]:
    """Reasons that no run by root may have."""
    by_root = ROOT if root is None else root
    return sorted(reason for reason in skipped if by_root and not reason.startswith(ALLOWED))


def fail_on_skips(session: pytest.Session) -> None:
    """A run by root that skipped something fails, though every test that it ran passed."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and session.exitstatus == pytest.ExitCode.OK and forbidden(reasons(terminal)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def tell(terminal: pytest.TerminalReporter) -> None:
    """Which tests were not run, for want of what, and how many."""
    skipped = reasons(terminal)
    if not skipped:
        return
    terminal.section("not run")
    for reason, names in sorted(skipped.items()):
        for name in sorted(names):
            terminal.line(name)
        terminal.line(f"{len(names)} skipped: {reason}")
    if found := forbidden(skipped):
        terminal.line(f"root skips nothing, so this run has failed: {'; '.join(found)}", red=True)
