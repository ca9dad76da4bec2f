"""docs/bus.md has a row for every stable code that the sources can state, and none for codes that nobody states."""

from __future__ import annotations

import re

import pytest
from repo.codes import FAMILY, stated
from repo.tree import ROOT

pytestmark = pytest.mark.quick

PAGE = ROOT / "docs" / "bus.md"
FAMILIES = ("not-found", "illegal-state", "unknown", "ambiguous", "invalid-id")
"""Reasons that every noun can be refused for: one row is enough for all of them."""


def rows() -> dict[str, str]:
    """Code → what it means, from the tables under Errors."""
    errors = PAGE.read_text(encoding="utf-8").partition("\n## Errors\n")[2].partition("\n## ")[0]
    found = {}
    for line in errors.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| `") and len(cells) == 2:
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1])
    return found


def test_every_code_has_a_row() -> None:
    documented = rows()
    missing = {
        code: sorted(where)
        for code, where in stated().items()
        if code not in documented and not (code.partition(".")[2] in FAMILIES and FAMILY + code.partition(".")[2] in documented)
    }
    assert not missing, missing


def test_every_row_is_a_code_that_somebody_states() -> None:
    known = stated()
    assert len(known) > 100
    assert not [code for code in rows() if code not in known]


def test_every_row_says_what_it_means() -> None:
    assert all(len(meaning) > 8 for meaning in rows().values())
