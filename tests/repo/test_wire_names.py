"""Names that are only strings where they are used: events that folds and views wait for, commands that somebody has to serve."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from repo.codes import stated
from repo.tree import CODE, ROOT, called, name, parsed, python, strings

from domain import catalogue
from domain.kernel.registry import AGGREGATES, COMMANDS, EVENTS
from handlers.plane import HANDLERS
from projections.views import VIEWS

pytestmark = pytest.mark.quick

FOLDS = (
    "handlers/fleet.py",
    "handlers/waiting.py",
    "handlers/processes",
    "handlers/reporting",
    "projections/views",
    "projections/facts.py",
)
SERVED_BY_THE_PROJECTOR = {"view.rebuild"}


@pytest.fixture(autouse=True, scope="module")
def everything_is_registered() -> None:
    catalogue.load()


def logged(path: Path) -> set[str]:
    """Names in the process's own log: written like events, but none."""
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    return {text for n in ast.walk(parsed(path)) if isinstance(n, ast.Call) and called(n) in levels for text in strings(n)}


def test_every_event_that_a_fold_or_view_waits_for_exists() -> None:
    files = [p for p in python("handlers", "projections") if name(p).startswith(FOLDS)]
    assert len(files) > 20
    known = EVENTS.keys() | COMMANDS.keys() | stated().keys()
    unknown = [
        f"{name(path)}: {text}"
        for path in files
        for text in set(strings(parsed(path))) - logged(path)
        if CODE.fullmatch(text) and text.partition(".")[0] in AGGREGATES and text not in known
    ]
    assert not unknown, "\n".join(unknown)


def test_every_command_is_served_or_said_not_to_be() -> None:
    served = {command.wire_name() for command in HANDLERS} | SERVED_BY_THE_PROJECTOR
    text = (ROOT / "docs" / "bus.md").read_text(encoding="utf-8")
    not_yet = set(re.findall(r"`([a-z.-]+)`", text.partition("## Not yet")[2].partition("\n## ")[0]))
    assert set(COMMANDS) - served <= not_yet, "neither served nor listed in docs/bus.md under Not yet"
    assert not (served & not_yet), "served by now: take it off the list"


def test_the_projector_serves_what_it_is_said_to() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in python("projections"))
    assert "ViewRebuild" in text


def test_every_view_of_the_contract_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "bus.md").read_text(encoding="utf-8")
    assert not [view.name for view in VIEWS if f"`{view.name}`" not in text]
