"""``sandbox exec``: words, streams and the exit code pass through unchanged."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import SB, Cli, error_of, strandline
from support.responder import Scripted

from domain.kernel.errors import Refused


def outcome(code: int = 0, out: bytes = b"", err: bytes = b"", **more: Any) -> dict[str, Any]:
    return {"exit_code": code, "stdout": base64.b64encode(out).decode(), "stderr": base64.b64encode(err).decode(), **more}


@pytest.fixture
def program(control: Scripted) -> Callable[..., None]:
    def ends(*args: Any, **more: Any) -> None:
        control.replies["sandbox.exec"] = outcome(*args, **more)

    return ends


def test_the_remote_exit_code_and_both_streams_come_back(cli: Cli, program: Callable[..., None]) -> None:
    program(42, b"to stdout\n", b"to stderr\n")
    result = cli("sandbox", "exec", SB, "--", "sh", "-c", "exit 42")
    assert result.exit_code == 42
    assert result.stdout == "to stdout\n"
    assert result.stderr == "to stderr\n"


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_arguments_arrive_exactly_as_typed(cli: Cli, control: Scripted, program: Callable[..., None], separator: list[str]) -> None:
    program()
    words = ["python", "-c", "print('a  b', \"$HOME\", `x`)", "", "--help", "-o", "json", "--", "*", "ümläut \n line"]
    cli("sandbox", "exec", SB, *separator, *words)
    assert control.commands[-1].body["cmd"] == words


def test_with_a_separator_our_options_may_stand_behind_the_sandbox(cli: Cli, control: Scripted, program: Callable[..., None]) -> None:
    program(0, b"x")
    result = cli("sandbox", "exec", SB, "-w", SB, "-o", "json", "--", "git", "log", "-o", "x", "--", "file")
    assert json.loads(result.stdout)["stdout"] == "x"
    assert control.commands[-1].body == {"sandbox_id": SB, "cwd": SB, "cmd": ["git", "log", "-o", "x", "--", "file"], "timeout_s": 60.0}


def test_without_one_a_separator_of_the_programs_own_is_left_alone(cli: Cli, control: Scripted, program: Callable[..., None]) -> None:
    program()
    cli("sandbox", "exec", "-w", "/srv", SB, "git", "log", "--", "file")
    assert control.commands[-1].body["cmd"] == ["git", "log", "--", "file"]


def test_options_before_the_sandbox_are_ours(cli: Cli, control: Scripted, program: Callable[..., None]) -> None:
    program()
    cli("sandbox", "exec", "-e", "A=1", "-w", "/srv", "-u", "app", "--timeout", "5m", SB, "env", "-w")
    assert control.commands[-1].body == {
        "sandbox_id": SB,
        "cmd": ["env", "-w"],
        "env": {"A": "1"},
        "cwd": "/srv",
        "user": "app",
        "timeout_s": 300.0,
    }


def test_a_tool_failure_is_125(cli: Cli, control: Scripted) -> None:
    control.replies["sandbox.exec"] = Refused("sandbox.illegal-state", "paused", details={"state": "PAUSED", "allowed": ["RUNNING"]})
    result = cli("sandbox", "exec", SB, "--", "true")
    assert result.exit_code == 125
    assert "hint: allowed in: RUNNING" in result.stderr
    assert cli("sandbox", "exec", "no-such-sandbox", "true").exit_code == 125


def test_a_program_that_was_killed_by_the_timeout_is_125_with_its_output(cli: Cli, program: Callable[..., None]) -> None:
    program(137, b"partial", timed_out=True)
    result = cli("sandbox", "exec", "-o", "json", SB, "sleep", "99")
    assert result.exit_code == 125
    assert json.loads(result.stdout)["stdout"] == "partial"
    assert error_of(result)["code"] == "exec.timed-out"


def test_json_has_text_or_base64(cli: Cli, program: Callable[..., None]) -> None:
    program(3, b"text", b"\xff\xfe", truncated=True)
    result = cli("sandbox", "exec", "-o", "json", SB, "x")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"exit_code": 3, "stdout": "text", "stderr_base64": "//4=", "truncated": True, "timed_out": False}


def test_piped_stdin_is_passed_on_as_bytes(dir: Path, control: Scripted, program: Callable[..., None]) -> None:  # noqa: A002 - a fixture
    program(0, bytes(range(256)))
    done = strandline("--dir", str(dir), "sandbox", "exec", SB, "--", "cat", input=bytes(range(256)))
    assert done.returncode == 0
    assert done.stdout == bytes(range(256))
    assert base64.b64decode(control.commands[-1].body["stdin"]) == bytes(range(256))


def test_stdin_is_left_alone_when_asked_or_when_it_is_no_pipe(dir: Path, control: Scripted, program: Callable[..., None]) -> None:  # noqa: A002
    program()
    strandline("--dir", str(dir), "sandbox", "exec", "--no-stdin", SB, "cat", input=b"kept")
    assert "stdin" not in control.commands[-1].body
    with Path("/dev/null").open("rb") as nothing:
        strandline("--dir", str(dir), "sandbox", "exec", SB, "cat", stdin=nothing)
    assert "stdin" not in control.commands[-1].body


def test_too_much_stdin_is_refused_before_anything_is_sent(dir: Path, control: Scripted) -> None:  # noqa: A002 - a fixture
    done = strandline("--dir", str(dir), "sandbox", "exec", SB, "cat", input=b"x" * 200_000)
    assert done.returncode == 125
    assert control.commands == []
