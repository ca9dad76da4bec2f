"""``docs/cli.md`` says what the command line does, and every command has what every command must have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from strandline.cli.main import COMMANDS, app
from strandline.cli.reference import OUTSIDE, reference

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
MUTATING = {
    "create",
    "commit",
    "redo",
    "adopt-baseline",
    "delete",
    "pause",
    "resume",
    "stop",
    "rollback",
    "clone",
    "set-ttl",
    "enroll",
    "evict",
}


def leaves() -> Iterator[tuple[str, Any]]:
    root = typer.main.get_command(app)
    ctx = typer.Context(root, info_name="strandline")
    for name in COMMANDS:
        if name in OUTSIDE:
            continue
        group = root.get_command(ctx, name)
        for verb, command in getattr(group, "commands", {}).items() or [("", group)]:
            yield f"{name} {verb}".strip(), command


LEAVES = dict(leaves())


def test_the_document_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "python -m strandline.cli.reference > docs/cli.md"


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_what_runs_the_installation_is_described_with_its_options(name: str) -> None:
    part = reference().partition(f"## strandline {name}\n")[2].partition("\n## ")[0]
    command = typer.main.get_command(app).get_command(None, name)
    assert all(f"`{option.opts[0]}`" in part for option in command.params if option.name != "help")
    assert command.help.splitlines()[0] in part


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_has_machine_output_help_and_an_example(path: str) -> None:
    command = LEAVES[path]
    options = {name for p in command.params for name in p.opts}
    assert {"-o", "--columns", "--no-headers", "--dir", "--url", "--project"} <= options
    assert "Examples" in command.help
    noun, _, verb = path.partition(" ")
    if verb in MUTATING and noun != "context":
        assert "--idempotency-key" in options
    if "--limit" in options:
        assert "--watch" in options
    if verb in {"list", "ls"} and noun in {"template", "sandbox", "snapshot", "node", "job", "artifact"}:
        assert {"--watch", "--limit"} <= options
    if path in {"node drain", "node enroll", "node evict", "artifact collect"}:
        assert {"--wait", "--timeout"} <= options


@pytest.mark.parametrize("path", LEAVES)
def test_every_example_is_a_command_line_that_parses(path: str) -> None:
    command = LEAVES[path]
    examples = re.findall(r"^\s+\$ (.*)$", command.help.replace("\\[", "["), re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example.split(" | strandline ")[-1].partition(" | jq")[0].removeprefix("strandline "), comments=False)
        words = words[words.index("strandline") + 1 :] if "strandline" in words else words
        root = typer.main.get_command(app)
        ctx = root.make_context("strandline", list(words))
        name, group, rest = root.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        while True:
            inner = group.make_context(name, list(rest), parent=ctx)
            if not hasattr(group, "commands"):
                break
            ctx = inner
            name, group, rest = group.resolve_command(inner, [*inner._protected_args, *inner.args])


@pytest.mark.parametrize("words", [["--help"], ["sandbox", "--help"], ["sandbox", "exec", "-h"], ["event", "export", "--help"]])
def test_help_is_there_on_every_level(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_overview_lists_every_noun() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    for name in ("template", "sandbox", "snapshot", "node", "job", "event", "view", "compat", "artifact", "api", "doctor", "context"):
        assert f" {name} " in text
