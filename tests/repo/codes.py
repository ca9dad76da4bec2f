"""Every stable code that the sources can answer or report with, and where."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from repo.tree import CODE, PRODUCT, called, name, parsed, python

from domain import catalogue
from domain.kernel.registry import AGGREGATES

STATING = {"Refused", "ImageFault", "RuntimeFault", "Failure", "fail", "__init__"}
FAMILY = "<noun>."
"""What stands for the noun in a code that is put together at run time."""


def stated() -> dict[str, set[str]]:
    """Code → the modules that state it."""
    catalogue.load()
    found: dict[str, set[str]] = defaultdict(set)
    for path in python(*PRODUCT):
        for node in ast.walk(parsed(path)):
            for code in _codes(node):
                found[code].add(name(path))
    for cls in AGGREGATES.values():
        for table in cls.LIFECYCLES.values():
            for _, _, cell in table:
                if cell.startswith("!"):
                    found[cell[1:] or f"{FAMILY}illegal-state"].add(cls.__module__)
    return dict(found)


def _codes(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call() if called(node) == "not_found" and node.args:
            for noun in _texts(node.args[0]):
                yield f"{noun}.not-found"
        case ast.Call() if called(node) in STATING:
            for argument in [*node.args[:1], *(k.value for k in node.keywords if k.arg == "code")]:
                yield from filter(_is_code, _texts(argument))
        case ast.Assign(targets=[ast.Name(id="code")], value=value):
            yield from filter(_is_code, _texts(value))


def _texts(node: ast.AST) -> Iterator[str]:
    """The strings that an expression can be; ``f"{noun}.ambiguous"`` is ``<noun>.ambiguous``."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(rest))]) if rest.startswith("."):
            yield FAMILY + rest[1:]
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body)
            yield from _texts(orelse)
        case ast.Name():
            return


def _is_code(text: str) -> bool:
    return text == "internal" or CODE.fullmatch(text.replace(FAMILY, "noun.")) is not None
