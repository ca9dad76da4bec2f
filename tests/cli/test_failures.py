"""Exit codes, what errors look like, and what the command line suggests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.command_line import SB, TPL, Cli, error_of, job, strandline
from support.responder import Scripted
from typer.testing import CliRunner

from domain.kernel.errors import Refused
from strandline.cli.exitcodes import MEANINGS, ExitCode, exit_code
from strandline.cli.main import app

pytestmark = pytest.mark.quick

CODES = {
    "template.not-found": 3,
    "template.in-use": 4,
    "template.attempt-in-progress": 4,
    "template.duplicate": 4,
    "template.no-failed-replicas": 4,
    "template.stale-needs-redo": 4,
    "template.cleanup-locator-missing": 1,
    "snapshot.in-use": 4,
    "sandbox.illegal-state": 4,
    "sandbox.startup-failed": 1,
    "sandbox.undo-blocked": 4,
    "storage.blocked": 6,
    "node.offline": 6,
    "capacity.exhausted": 6,
    "bus.unavailable": 6,
    "bus.overloaded": 6,
    "command.invalid": 2,
    "command.unknown": 2,
    "command.too-large": 2,
    "command.mismatch": 4,
    "auth.expired-key": 5,
    "node.evicted": 5,
    "wait.timeout": 7,
    "internal": 1,
}


@pytest.mark.parametrize(("code", "expected"), CODES.items())
def test_every_documented_refusal_has_its_exit_code(code: str, expected: int) -> None:
    assert exit_code(Refused(code, "")) == expected


def test_a_reason_nobody_listed_goes_by_whether_trying_again_helps() -> None:
    assert exit_code(Refused("thing.odd", "", retryable=True)) == 6
    assert exit_code(Refused("thing.odd", "")) == 1


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("template.in-use", 4), ("template.not-found", 3), ("storage.blocked", 6), ("auth.unauthorized", 5), ("odd.thing", 1)],
)
def test_the_process_ends_with_the_refusals_exit_code(cli: Cli, control: Scripted, code: str, expected: int) -> None:
    control.replies["template.delete"] = Refused(code, "no")
    assert cli("template", "delete", TPL).exit_code == expected


def test_an_error_is_two_lines_on_stderr(cli: Cli, control: Scripted) -> None:
    result = cli("template", "get", "nothing-like-that")
    assert result.stdout == ""
    assert result.stderr == "error: template.not-found: no template 'nothing-like-that'\nhint: strandline template list\n"


def test_a_disk_that_somebody_has_says_how_it_is_got_back(cli: Cli, control: Scripted) -> None:
    """Trying again would change nothing: it is a sandbox that has to let go."""
    details = {"disk": "data", "sandbox_id": SB}
    control.replies["disk.delete"] = Refused("disk.in-use", f"sandbox {SB} has disk data", retryable=True, details=details)
    result = cli("disk", "delete", "data")
    assert f"hint: strandline sandbox stop {SB} gives it back; strandline disk release data --force deletes that sandbox" in result.stderr


def test_an_error_is_an_object_with_json_and_yaml(cli: Cli, control: Scripted) -> None:
    control.replies["template.delete"] = Refused("template.in-use", "in use", details={"sandboxes": [SB]})
    result = cli("template", "delete", TPL, "-o", "json")
    assert result.stdout == ""
    assert error_of(result) == {
        "code": "template.in-use",
        "message": "in use",
        "retryable": False,
        "details": {"sandboxes": [SB]},
        "hint": f"strandline sandbox delete {SB}",
    }
    assert yaml.safe_load(cli("template", "delete", TPL, "-o", "yaml").stderr)["error"]["code"] == "template.in-use"


def test_an_invalid_argument_is_refused_here_and_named_by_field(cli: Cli, control: Scripted) -> None:
    result = cli("template", "create", "docker://x/y", "--alias", "Not A Name")
    assert result.exit_code == 2
    assert "error: command.invalid:" in result.stderr
    assert "  alias: " in result.stderr
    assert control.commands == []


def test_wrong_words_are_usage_errors_with_the_next_thing_to_type(cli: Cli, control: Scripted) -> None:
    result = cli("sandbox", "lst")
    assert result.exit_code == 2
    assert "Did you mean 'list'" in result.stderr
    assert "hint: strandline sandbox --help" in result.stderr
    assert cli("sandbx").stderr.startswith("error: command.usage: No such command 'sandbx'. Did you mean 'sandbox'?")
    assert json.loads(cli("sandbox", "list", "--nope", "-o", "json").stderr)["error"]["code"] == "command.usage"


def test_filters_must_be_field_value_pairs_and_leave_options_alone(cli: Cli, control: Scripted) -> None:
    assert cli("sandbox", "list", "RUNNING").exit_code == 2
    assert "--limit" in cli("sandbox", "list", "limit=3").stderr


def test_nobody_there_is_exit_code_6_and_says_how_to_start(home: Path) -> None:
    result = CliRunner().invoke(app, ["--dir", str(home / "empty"), "node", "list"])
    assert result.exit_code == 6
    assert "nothing runs in" in result.stderr
    assert "strandline up" in result.stderr


def test_a_job_that_fails_gives_its_reason_and_exit_code(cli: Cli, control: Scripted) -> None:
    control.replies["template.create"] = {"template_id": TPL, "job_id": job()["job_id"], "settled": False}
    failure = {"code": "image.not-found", "message": "no such tag", "retryable": False, "details": {}}
    control.views["jobs"] = [job(status="FAILED", phase="PULLING", progress=12, error=failure)]
    result = cli("template", "create", "docker://registry.example/nope", "-o", "json")
    assert result.exit_code == 3
    assert error_of(result)["message"] == "no such tag"
    assert error_of(result)["details"]["phase"] == "PULLING"


def test_a_wait_that_is_too_short_is_exit_code_7_and_says_how_to_go_on(cli: Cli, control: Scripted) -> None:
    control.replies["sandbox.create"] = {"sandbox_id": SB, "state": "PENDING", "settled": False}
    result = cli("sandbox", "create", TPL, "--timeout", "1s")
    assert result.exit_code == 7
    assert f"hint: strandline sandbox wait {SB}" in result.stderr
    control.views["jobs"] = [job(status="RUNNING", phase="PULLING", progress=10)]
    result = cli("job", "wait", job()["job_id"], "--timeout", "0.2s")
    assert result.exit_code == 7
    assert "strandline job wait" in result.stderr


def test_the_entry_point_ends_with_the_same_codes_and_no_traceback(dir: Path, control: Scripted) -> None:  # noqa: A002 - a fixture
    done = strandline("--dir", str(dir), "template", "get", "nothing-like-that")
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr
