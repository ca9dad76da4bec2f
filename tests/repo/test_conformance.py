"""docs/conformance.md: complete, without repetitions, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

import pytest
from repo.tree import ROOT, functions, parsed

pytestmark = pytest.mark.quick

PAGE = ROOT / "docs" / "conformance.md"
SYMBOLS = {"Template centre": 142, "Sandbox controller": 99, "Instances": 129, "Reservations": 81}
"""Exported symbols of each API: constants, variables, functions, types, methods, and methods of interfaces."""
KINDS = {"const", "var", "func", "type", "method", "interface method"}
STATES = {"done", "partly", "not yet"}


class Row(NamedTuple):
    symbol: str
    kind: str
    here: str
    test: str
    state: str


def sections() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("| `")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        found[title] = [
            Row(symbol.strip("`"), kind, here, "" if test == "-" else test.strip("`"), state) for symbol, kind, here, test, state in rows
        ]
    return found


EVERYTHING = [(title, row) for title, rows in sections().items() for row in rows]


def test_every_symbol_has_its_row() -> None:
    found = sections()
    assert {title: len(rows) for title, rows in found.items() if title in SYMBOLS} == SYMBOLS
    for title, rows in found.items():
        symbols = [row.symbol for row in rows]
        assert len(symbols) == len(set(symbols)), title


def test_every_row_is_complete() -> None:
    for title, row in EVERYTHING:
        assert row.kind in KINDS, (title, row)
        assert row.state in STATES, (title, row)
        assert len(row.here) > 8, (title, row)
        assert bool(row.test) == (row.state != "not yet"), (title, row)


def test_every_test_that_is_named_exists() -> None:
    for test in {row.test for _, row in EVERYTHING if row.test}:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), test
        assert name in {function.name for function in functions(ROOT / path)}, test


def test_what_is_done_is_shown_on_a_real_server() -> None:
    """Rules alone, a driver alone or a view's store alone are not enough: the module has a server to talk to."""
    for test in {row.test for _, row in EVERYTHING if row.state == "done"}:
        path = ROOT / test.partition("::")[0]
        words = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
        words |= {node.arg for node in ast.walk(parsed(path)) if isinstance(node, ast.arg)}
        assert words & {"server", "shared_server", "bus", "at", "up", "placed", "running", "installed"}, test


def test_the_totals_are_those_of_the_tables() -> None:
    said = dict(re.findall(r"^\| \[([^\]]+)\]\(#[^)]*\) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for title, rows in sections().items():
        if title in SYMBOLS:
            states = [row.state for row in rows]
            counted = [len(rows), *(states.count(state) for state in ("done", "partly", "not yet"))]
            assert [int(figure) for figure in said[title].split(" | ")] == counted, title
