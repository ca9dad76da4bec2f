"""Where the command line goes: flags, environment, contexts, and the default directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import Cli, error_of
from support.responder import Scripted
from typer.testing import CliRunner, Result

from strandline import installation as product
from strandline.cli import where
from strandline.cli.main import app
from strandline.cli.where import Where

pytestmark = pytest.mark.quick


def go(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_flags_win_over_environment_over_context_over_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert where.find(Where()).target == str(home / "state" / "strandline")
    where.write_contexts(where.Contexts("prod", {"prod": Where(url="nats://prod", project="web", creds="/c")}))
    assert where.find(Where()) == Where(url="nats://prod", project="web", creds="/c")
    monkeypatch.setenv("STRANDLINE_DIR", "/from-env")
    assert where.find(Where()).target == "/from-env"
    assert where.find(Where(), "prod").target == "nats://prod"
    monkeypatch.setenv("STRANDLINE_URL", "nats://env")
    assert where.find(Where()).target == "nats://env"
    assert where.find(Where(dir="/flag")).target == "/flag"
    assert where.find(Where(url="nats://flag", project="p")) == Where(url="nats://flag", project="p")


def test_the_default_directory_is_the_one_that_up_uses() -> None:
    assert where.default_dir() == product.default_dir()


def test_contexts_are_added_used_listed_and_forgotten(dir: Path, control: Scripted) -> None:  # noqa: A002 - a fixture
    added = go("context", "add", "here", "--dir", str(dir), "--project", "blue", "-o", "json")
    assert json.loads(added.stdout)["mark"] == "*"
    assert go("sandbox", "list").exit_code == 0
    assert control.asked[-1].project == "blue"
    go("context", "add", "there", "--url", "nats://127.0.0.1:1")
    assert [row["name"] for row in json.loads(go("context", "list", "-o", "json").stdout)] == ["here", "there"]
    assert json.loads(go("context", "use", "there", "-o", "json").stdout)["mark"] == "*"
    assert go("--context", "here", "sandbox", "list").exit_code == 0
    assert go("context", "delete", "there").exit_code == 0
    assert where.read_contexts().current is None
    assert oct(where.config_file().stat().st_mode & 0o777) == "0o600"


def test_a_context_that_is_not_there_is_named(home: Path) -> None:
    result = go("--context", "nowhere", "sandbox", "list", "-o", "json")
    assert result.exit_code == 3
    assert error_of(result)["code"] == "context.not-found"
    assert go("context", "use", "nowhere").exit_code == 3


def test_a_broken_configuration_file_is_a_usage_error_that_names_it(home: Path) -> None:
    where.config_file().parent.mkdir(parents=True)
    where.config_file().write_text("current = [")
    result = go("sandbox", "list")
    assert result.exit_code == 2
    assert "config.toml" in result.stderr


@pytest.mark.parametrize("text", ['a"b', "back\\slash", "new\nline", "ümläut", "tab\t", "\x7f"])
def test_contexts_survive_odd_characters(home: Path, text: str) -> None:
    where.write_contexts(where.Contexts(text, {text: Where(dir=text, project="p")}))
    assert where.read_contexts() == where.Contexts(text, {text: Where(dir=text, project="p")})


def test_dir_and_url_exclude_each_other(cli: Cli) -> None:
    result = go("--dir", "/x", "--url", "nats://y", "node", "list")
    assert result.exit_code == 2
    assert "exclude" in result.stderr


def test_a_url_is_enough_to_connect(control: Scripted) -> None:
    assert go("--url", control.url, "sandbox", "list", "-o", "json").stdout == "[]\n"
