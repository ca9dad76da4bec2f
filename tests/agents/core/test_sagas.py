"""The sagas of this program: what they look like may be relied on by executions that other programs began and will end."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from repo.tree import called, parsed, python

from agents.sagas import SAGAS
from domain.kernel.saga import shape
from handlers.processes.sandboxes import STEPS

pytestmark = pytest.mark.quick

LOCK = Path(__file__).parents[2] / "golden" / "sagas.jsonl"


def locked() -> dict[str, str]:
    lines = LOCK.read_text().splitlines()
    return {json.loads(line)["saga"]: line for line in lines}


def line_of(name: str) -> str:
    return json.dumps(shape(SAGAS[name]), separators=(",", ":"))


@pytest.mark.parametrize("name", list(SAGAS))
def test_a_shape_does_not_change_within_a_version(name: str) -> None:
    known, now = locked().get(SAGAS[name].label), line_of(name)
    assert known is not None, f"a new version: add this line to {LOCK.name}\n{now}"
    assert known == now, "executions of it may be unfinished somewhere: give it a new version, and say whether that resumes older ones"


@pytest.mark.parametrize("name", list(SAGAS))
def test_no_version_is_forgotten(name: str) -> None:
    """All of them are in the lock, one after the other; what a version resumes is older than it is."""
    versions = [int(label.partition("/")[2]) for label in locked() if label.startswith(f"{name}/")]
    assert versions == list(range(1, SAGAS[name].version + 1))
    assert all(version in versions[:-1] for version in SAGAS[name].resumes)


def test_every_saga_that_is_declared_is_listed() -> None:
    sources = [path for path in python("agents", "handlers") if path.name != "saga.py"]
    calls = [node for path in sources for node in ast.walk(parsed(path)) if isinstance(node, ast.Call) and called(node) == "define"]
    assert len(calls) == len(SAGAS)


def test_the_control_plane_knows_the_steps_of_a_creation() -> None:
    assert SAGAS["create-sandbox"].steps == STEPS
