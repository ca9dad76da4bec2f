"""The repository as a tree of files: what the tests about it walk over."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("domain", "bus", "handlers", "projections", "agents", "gateway", "strandline")
ALL = (*PRODUCT, "scripts", "benchmarks", "tests")
CODE = re.compile(r"[a-z][a-z-]*\.[a-z][a-z-]*")
"""``noun.kebab-reason``: how codes, events and commands are written."""


@cache
def python(*folders: str) -> tuple[Path, ...]:
    """Every Python file below these folders of the repository."""
    return tuple(sorted(path for folder in folders for path in _below(ROOT / folder) if path.suffix == ".py"))


def documents() -> list[Path]:
    """Every Markdown file that belongs to the repository."""
    return sorted([*ROOT.glob("*.md"), *(p for folder in ("docs", *ALL) for p in _below(ROOT / folder) if p.suffix == ".md")])


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder. ``Path.rglob`` leaves a directory open when it vanishes under it."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(place, name) for name in names)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def strings(node: ast.AST) -> Iterator[str]:
    return (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def called(node: ast.Call) -> str:
    """The last part of what is called: ``Refused`` for ``errors.Refused(...)``."""
    match node.func:
        case ast.Name(id=found) | ast.Attribute(attr=found):
            return found
    return ""


def p(values: Iterable[int], quantile: float) -> int:
    """The value that this part of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * quantile), len(ordered) - 1)]
