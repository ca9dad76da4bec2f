"""Every format of ``-o``, on lists, single things and commands."""

from __future__ import annotations

import csv
import io
import json

import pytest
import yaml
from support.command_line import SB, SB2, SB3, SNAP, TEMPLATE, TPL, Cli, error_of, sandbox
from support.responder import Scripted

pytestmark = pytest.mark.quick


@pytest.fixture
def three(control: Scripted) -> Scripted:
    control.views["sandboxes"] = [
        sandbox(),
        sandbox(SB2, name="", state="PAUSED", ends_at=None, labels={}, ports=[]),
        sandbox(SB3, name="old", state="DEAD", reason="ttl_expired", exit={"code": 137, "at": "2026-11-20T11:00:00Z"}),
    ]
    return control


def test_a_table_shows_what_lives_in_aligned_columns(cli: Cli, three: Scripted) -> None:
    result = cli("sandbox", "list")
    assert result.stdout == (
        "ID                       NAME  STATE    TEMPLATE                      NODE  STARTED  ENDS\n"
        f"{SB}  web   RUNNING  {TPL}  n1    5m       in 10m\n"
        f"{SB2}  -     PAUSED   {TPL}  n1    5m       never\n"
    )
    assert result.stderr == ""


def test_wide_shows_every_column(cli: Cli, three: Scripted) -> None:
    header, first, *_ = cli("sandbox", "list", "-o", "wide").stdout.splitlines()
    assert header.split("  ")[-1] == "LABELS"
    assert "process" in first
    assert "8080:bound" in first
    assert first.endswith("team=blue")


def test_all_shows_the_dead_too_and_no_headers_leaves_them_out(cli: Cli, three: Scripted) -> None:
    assert cli("sandbox", "list", "--all", "--no-headers").stdout.count("\n") == 3
    assert cli("sandbox", "list", "state=DEAD", "-o", "name").stdout == SB3 + "\n"


def test_json_is_one_array_of_the_items_as_they_came(cli: Cli, three: Scripted) -> None:
    assert json.loads(cli("sandbox", "list", "--all", "-o", "json").stdout) == three.views["sandboxes"]


def test_jsonl_is_one_item_per_line(cli: Cli, three: Scripted) -> None:
    lines = cli("sandbox", "list", "--all", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == three.views["sandboxes"]


def test_yaml_is_a_list_of_the_items(cli: Cli, three: Scripted) -> None:
    assert yaml.safe_load(cli("sandbox", "list", "--all", "-o", "yaml").stdout) == three.views["sandboxes"]


def test_csv_has_raw_values_and_json_where_there_is_structure(cli: Cli, three: Scripted) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("sandbox", "list", "--all", "-o", "csv").stdout)))
    assert [row["sandbox_id"] for row in rows] == [SB, SB2, SB3]
    assert rows[0]["ends_at"] == "2026-11-20T12:10:00Z"
    assert json.loads(rows[0]["labels"]) == {"team": "blue"}
    assert rows[2]["exit.code"] == "137"


def test_name_is_the_id_alone(cli: Cli, three: Scripted) -> None:
    assert cli("sandbox", "list", "-o", "name").stdout == f"{SB}\n{SB2}\n"


def test_columns_choose_fields_by_header_or_path_in_every_format(cli: Cli, three: Scripted) -> None:
    assert cli("sandbox", "list", "--columns", "name,labels.team").stdout == "NAME  LABELS.TEAM\nweb   blue\n-     -\n"
    assert json.loads(cli("sandbox", "list", "--columns", "id,state", "-o", "json").stdout)[0] == {"sandbox_id": SB, "state": "RUNNING"}
    assert cli("sandbox", "list", "--columns", "state", "-o", "csv", "--no-headers").stdout == "RUNNING\nPAUSED\n"


def test_a_column_that_does_not_exist_is_a_usage_error_with_the_nearest(cli: Cli, three: Scripted) -> None:
    result = cli("sandbox", "list", "--columns", "stat")
    assert result.exit_code == 2
    assert "did you mean state?" in result.stderr


@pytest.mark.parametrize("fmt", ["json", "yaml", "table", "csv", "jsonl", "name"])
def test_an_empty_list_is_empty_in_every_format(cli: Cli, control: Scripted, fmt: str) -> None:
    control.views["sandboxes"] = []
    result = cli("sandbox", "list", "-o", fmt)
    assert result.exit_code == 0
    expected = {"json": "[]\n", "yaml": "[]\n", "jsonl": "", "name": ""}
    if fmt in expected:
        assert result.stdout == expected[fmt]
    else:
        assert result.stdout.count("\n") == 1


def test_one_thing_is_a_record_for_people_and_an_object_for_machines(cli: Cli, three: Scripted) -> None:
    text = cli("sandbox", "get", "web").stdout
    assert f"sandbox_id:  {SB}\n" in text
    assert "ends_at:     2026-11-20T12:10:00Z (in 10m)\n" in text
    assert "started_at:  2026-11-20T11:55:00Z (5m ago)\n" in text
    assert json.loads(cli("sandbox", "get", "web", "-o", "json").stdout) == three.views["sandboxes"][0]


def test_commands_have_machine_output_too(cli: Cli, three: Scripted) -> None:
    three.replies["sandbox.delete"] = {"sandbox_id": SB, "state": "STOPPED", "settled": True}
    found = json.loads(cli("sandbox", "delete", SB, "-o", "json").stdout)
    assert found["sandbox_id"] == SB
    assert found["state"] == "STOPPED"
    assert found["seq"] == three.seq
    assert cli("sandbox", "delete", SB, "-o", "name").stdout == SB + "\n"


def test_a_format_that_does_not_exist_is_a_usage_error(cli: Cli, three: Scripted) -> None:
    result = cli("sandbox", "list", "-o", "xml")
    assert result.exit_code == 2
    assert "xml" in result.stderr


def test_templates_snapshots_and_compat_have_their_own_columns(cli: Cli, control: Scripted) -> None:
    control.views["templates"] = [TEMPLATE]
    assert cli("template", "list").stdout == (
        "ID                            ALIAS   STATUS  REPLICAS        IMAGE                                  AGE\n"
        f"{TPL}  python  READY   2/3 (1 failed)  docker://registry.example/python:3.12  3h\n"
    )
    control.views["compat-matrix"] = [
        {"template_id": TPL, "overall": "STALE", "nodes": [{"node_id": "n1", "compat": "OK"}, {"node_id": "n2", "compat": "STALE"}]}
    ]
    assert cli("compat", "matrix").stdout == f"TEMPLATE                      OVERALL  n1  n2\n{TPL}  STALE    OK  STALE\n"
    control.views["snapshots"] = [{"snapshot_id": SNAP, "name": "x", "status": "READY", "size_bytes": 5 << 20, "runtime_refs": []}]
    assert "5.0 MiB" in cli("snapshot", "list").stdout


def test_the_global_format_counts_when_the_command_has_none(cli: Cli, three: Scripted) -> None:
    assert json.loads(cli("-o", "json", "sandbox", "list", "--all").stdout) == three.views["sandboxes"]
    assert error_of(cli("-o", "json", "sandbox", "get", "nobody"))["code"] == "sandbox.not-found"
