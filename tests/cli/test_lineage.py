"""``strandline snapshot tree``: who came from whom."""

from __future__ import annotations

import pytest
from support.command_line import SB, SB2, SNAP, TPL, Cli
from support.responder import Scripted

pytestmark = pytest.mark.quick


def thing(identifier: str, kind: str, parent: str | None, minute: int, **more) -> dict:
    return {"id": identifier, "kind": kind, "name": "", "parent_id": parent, "created_at": f"2026-01-01T00:{minute:02}:00Z", **more}


def test_each_stands_under_what_it_came_from(cli: Cli, control: Scripted) -> None:
    control.views["lineage"] = [
        thing(SB2, "sandbox", SNAP, 3),
        thing(SNAP, "snapshot", SB, 2, name="before"),
        thing(SB, "sandbox", TPL, 1, gone=True),
        thing("sb-" + "z" * 20, "sandbox", TPL, 4),
        thing(TPL, "template", None, 0, name="base", gone=True),
    ]
    shown = cli("snapshot", "tree")
    assert shown.exit_code == 0, shown.stderr
    assert [line.partition("-")[0] + line.partition("-")[2][:1] for line in shown.stdout.splitlines()[1:]] == [
        "tpl" + TPL[4],
        "├─ sb" + SB[3],
        "│  └─ snap" + SNAP[5],
        "│     └─ sb" + SB2[3],
        "└─ sbz",
    ]
    part = cli("snapshot", "tree", "--of", SNAP, "-o", "name")
    assert part.stdout.split() == [SNAP, SB2]
