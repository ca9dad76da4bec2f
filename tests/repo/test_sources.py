"""How sources are written: nothing unfinished, nothing silenced without its rule, no sleeping tests, sizes as in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo.tree import ALL, PRODUCT, called, functions, lines, name, p, parsed, python

pytestmark = pytest.mark.quick

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|pragma:\s*no\s*cover")
SILENCED = re.compile(r"#\s*noqa(?!: [A-Z]+[0-9]+)|#\s*type:\s*ignore(?!\[[a-z-]+)")
LONGEST_FILE = 350
LONGEST_TEST_FILE = 500
LONGEST_BODY = 60
LONGER = {
    "domain/nodes/orders.py": "every order and report of the lane protocol, which is read side by side",
}


def comments(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_no_source_is_left_unfinished() -> None:
    found = [f"{name(f)}:{n}: {text}" for f in python(*ALL) for n, text in comments(f) if UNFINISHED.search(text)]
    assert not found, "\n".join(found)


def test_nothing_raises_not_implemented() -> None:
    found = [
        f"{name(path)}:{node.lineno}"
        for path in python(*ALL)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Name) and node.id == "NotImplemented" + "Error"
    ]
    assert not found, "\n".join(found)


def test_what_is_silenced_names_its_rule() -> None:
    found = [f"{name(f)}:{n}: {text}" for f in python(*ALL) for n, text in comments(f) if SILENCED.search(text)]
    assert not found, "\n".join(found)


def test_no_test_sleeps() -> None:
    """Yielding to the loop (``asyncio.sleep(0)``) is no sleep; a variable could be anything, so it is not allowed either."""
    found = [
        f"{name(path)}:{node.lineno}"
        for path in python("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and called(node) == "sleep" and not _zero(node)
    ]
    assert not found, "wait for a condition instead:\n" + "\n".join(found)


def _zero(node: ast.Call) -> bool:
    return len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0


def test_no_file_is_too_long() -> None:
    limits = {path: LONGEST_TEST_FILE if name(path).startswith("tests/") else LONGEST_FILE for path in python(*ALL)}
    found = [f"{name(path)}: {lines(path)} lines" for path, limit in limits.items() if lines(path) > limit and name(path) not in LONGER]
    assert not found, "\n".join(found)


def test_the_exceptions_are_still_needed() -> None:
    assert all(lines(path) > LONGEST_FILE for path in python(*ALL) if name(path) in LONGER)


def test_no_function_is_too_long() -> None:
    """Counted from the first statement: a command line's options are a signature and not a function that does too much."""
    found = [f"{name(path)}: {f.name}" for path in python(*PRODUCT) for f in functions(path) if _body(f) > LONGEST_BODY]
    assert not found, "\n".join(found)


def test_most_files_and_functions_are_short() -> None:
    files = [lines(path) for path in python(*PRODUCT)]
    bodies = [_body(f) for path in python(*PRODUCT) for f in functions(path)]
    assert p(files, 0.5) <= 190
    assert p(files, 0.9) <= 350
    assert p(bodies, 0.9) <= 35


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.body[0].lineno + 1


def test_every_module_says_what_it_is() -> None:
    found = [name(path) for path in python(*PRODUCT) if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(parsed(path))]
    assert not found, "\n".join(found)
