"""``strandline sandbox steps``: how far a start is, or how it failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.command_line import SB, Cli, error_of, sandbox
from support.responder import Scripted

pytestmark = pytest.mark.quick

FAILURE = {"code": "node.broken", "message": "it broke"}


def told(step: str, state: str, second: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "state": state, "at": f"2026-11-20T09:00:0{second}Z", **more}


def event(seq: int, name: str, **data: Any) -> dict[str, Any]:
    return {"seq": seq, "type": f"provisioning.{name}", "id": SB, "time": "2026-11-20T09:00:00Z", "data": data}


def test_each_step_is_shown_as_it_is_now(cli: Cli, control: Scripted) -> None:
    control.views["sandboxes"] = [sandbox()]
    control.events = [
        event(1, "begun", node_id="n1", steps=["root", "network", "start", "ready"]),
        event(2, "stepped", attempt=1, steps=[told("root", "started", 1), told("root", "done", 1.5), told("network", "started", 2)]),
        event(3, "stepped", attempt=1, first=3, steps=[told("network", "done", 3), told("start", "started", 3)]),
        event(4, "stepped", attempt=1, first=5, steps=[told("start", "failed", 5, error=FAILURE), told("start", "undone", 6)]),
        event(5, "stepped", attempt=1, first=7, steps=[told("network", "undo-failed", 7, error=FAILURE)]),
    ]
    shown = cli("sandbox", "steps", SB)
    assert shown.exit_code == 0, shown.stderr
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [
        ["root", "done"],
        ["network", "undo-failed"],
        ["start", "undone"],
        ["ready", "waiting"],
    ]
    rows = json.loads(cli("sandbox", "steps", SB, "-o", "json").stdout)
    assert [row.get("took_s") for row in rows] == [0.5, 1, 2, None]
    assert [row.get("error") for row in rows] == [None, FAILURE, FAILURE, None]


def test_a_sandbox_that_there_is_not_has_no_steps(cli: Cli, control: Scripted) -> None:
    assert error_of(cli("sandbox", "steps", SB, "-o", "json"))["code"] == "sandbox.not-found"
