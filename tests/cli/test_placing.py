"""Placement on the command line: what is asked of it, and why a sandbox is here and not there."""

from __future__ import annotations

import json

import pytest
from support.command_line import SB, TEMPLATE, Cli, sandbox
from support.responder import Scripted

pytestmark = pytest.mark.quick

PLACED = {
    "strategy": "pack",
    "score": 0.5,
    "considered": 3,
    "fitting": 2,
    "refused": {"node.no-labels": 1},
    "runner_up": "n3",
    "node": None,
    "node_labels": {"zone": "a"},
}
VERDICTS = [
    {"node_id": "n1", "fits": True, "here": True, "rank": 2, "score": 0.25, "code": "", "reason": ""},
    {"node_id": "n2", "fits": False, "here": False, "rank": None, "score": None, "code": "node.no-labels", "reason": "it has not zone=a"},
    {"node_id": "n3", "fits": True, "here": False, "rank": 1, "score": 0.75, "code": "", "reason": ""},
]


@pytest.fixture
def fleet(control: Scripted) -> Scripted:
    control.views = {
        "sandboxes": [sandbox(placed=PLACED)],
        "placement": VERDICTS,
        "templates": [TEMPLATE],
        "nodes": [{"node_id": "n1", "status": "ready"}],
    }
    control.replies["sandbox.create"] = {"sandbox_id": SB, "state": "RUNNING", "node_id": "n1", "settled": True}
    return control


def test_why_shows_what_was_decided_and_what_is_said_of_each_node_now(cli: Cli, fleet: Scripted) -> None:
    shown = cli("sandbox", "why", "web")
    assert shown.exit_code == 0, shown.stderr
    decided, _, *rows = shown.stdout.splitlines()
    assert decided == "on n1: pack, score 0.5; 2 of 3 nodes fitted, else n3; not: 1 node.no-labels"
    assert [row.split()[0] for row in rows] == ["NODE", "n3", "n1", "n2"]
    assert "node.no-labels" in rows[3]
    assert {k: v for k, v in fleet.asked[-2].body.items() if k != "min_seq"} == {"sandbox_id": SB, "limit": 1000}
    assert [row["node_id"] for row in json.loads(cli("sandbox", "why", "web", "-o", "json").stdout)] == ["n3", "n1", "n2"]


def test_a_what_if_asks_with_the_wishes_of_a_create_and_creates_nothing(cli: Cli, fleet: Scripted) -> None:
    words = "--template python --cpu 2 --memory 8G --strategy affinity --node-label zone=a"
    assert cli("sandbox", "why", *words.split()).exit_code == 0
    asked = {"template": "python", "cpu": 2.0, "memory_mb": 8192, "strategy": "affinity", "node_labels": {"zone": "a"}, "limit": 1000}
    assert (fleet.asked[-1].name, fleet.asked[-1].body) == ("placement.explain", asked)
    assert not fleet.commands


@pytest.mark.parametrize("words", ["", "web --template python"])
def test_why_of_nothing_and_of_two_things_is_a_usage_error(cli: Cli, fleet: Scripted, words: str) -> None:
    assert cli("sandbox", "why", *words.split()).exit_code == 2
    assert not fleet.asked


def test_pools_are_set_shown_and_deleted(cli: Cli, fleet: Scripted) -> None:
    status = {"template_id": TEMPLATE["template_id"], "state": "ACTIVE", "desired": 3, "current": 3, "ready": 3, "settled": True}
    fleet.replies["pool.set"] = fleet.replies["pool.delete"] = status
    fleet.views["pools"] = [{**status, "handed_over": 7, "members": {}}, {**status, "template_id": "tpl-" + "9" * 24, "state": "GONE"}]
    assert cli("pool", "set", "python", "3", "--idle", "15m", "--no-warm").exit_code == 0
    assert fleet.commands[-1].body == {"template": "python", "desired": 3, "warm": False, "idle_s": 900.0, "wait_s": 120}
    assert cli("pool", "set", "python", "--idle", "never").exit_code == 0
    assert fleet.commands[-1].body == {"template": "python", "idle_s": -1.0, "wait_s": 120}
    assert [row["handed_over"] for row in json.loads(cli("pool", "list", "-o", "json").stdout)] == [7]
    assert len(json.loads(cli("pool", "list", "--all", "-o", "json").stdout)) == 2
    assert cli("pool", "get", "python").exit_code == 0
    assert cli("pool", "delete", "python").exit_code == 0
    assert cli("pool", "set", "python", "21").exit_code == 2


def test_create_and_configure_send_labels_strategy_and_ratios(cli: Cli, fleet: Scripted) -> None:
    assert cli("sandbox", "create", "python", "--strategy", "pack", "--node-label", "zone=a", "--node-label", "disk=ssd").exit_code == 0
    sent = fleet.commands[-1].body
    assert (sent["strategy"], sent["node_labels"]) == ("pack", {"zone": "a", "disk": "ssd"})
    assert cli("node", "configure", "n1", "-l", "zone=a", "--cpu-ratio", "4", "--memory-ratio", "1.5").exit_code == 0
    assert fleet.commands[-1].body == {"node_id": "n1", "labels": {"zone": "a"}, "cpu_ratio": 4.0, "memory_ratio": 1.5}
    assert cli("node", "configure", "n1", "--no-labels", "--sandboxes-ratio", "2").exit_code == 0
    assert fleet.commands[-1].body == {"node_id": "n1", "labels": {}, "sandboxes_ratio": 2.0}
