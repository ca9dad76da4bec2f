"""``sandbox logs``: lines out of chunks, streams, patterns, and following until the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import SB, SB2, Cli, sandbox
from support.responder import Scripted


@pytest.fixture(scope="module")
def written(installation: tuple[Path, Scripted]) -> Scripted:
    control = installation[1]
    for stream, data in (
        ("stdout", b"first\nsec"),
        ("stderr", b"a warning\n"),
        ("stdout", b"ond\nthird\r\n"),
        ("runtime", b"started\n"),
        ("stdout", b"bytes \xff\n"),
        ("stdout", b"no end"),
    ):
        control.print(SB, stream, data)
    return control


@pytest.fixture
def known(written: Scripted, control: Scripted) -> Scripted:
    control.views["sandboxes"] = [sandbox(), sandbox(SB2)]
    return control


def test_chunks_become_lines_in_order(cli: Cli, known: Scripted) -> None:
    assert cli("sandbox", "logs", SB).stdout.splitlines() == ["first", "a warning", "second", "third", "started", "bytes �", "no end"]


def test_lines_are_chosen_by_stream_pattern_and_number(cli: Cli, known: Scripted) -> None:
    assert cli("sandbox", "logs", SB, "--stream", "stderr").stdout == "a warning\n"
    assert cli("sandbox", "logs", SB, "--grep", "^(first|third)$").stdout == "first\nthird\n"
    assert cli("sandbox", "logs", SB, "-n", "2").stdout == "bytes �\nno end\n"
    assert cli("sandbox", "logs", SB, "-n", "1", "--grep", "ir").stdout == "third\n"
    assert cli("sandbox", "logs", SB, "--grep", "(").exit_code == 2


def test_machines_get_the_stream_and_time_of_each_line(cli: Cli, known: Scripted) -> None:
    lines = [json.loads(one) for one in cli("sandbox", "logs", SB, "-o", "jsonl").stdout.splitlines()]
    assert [(one["stream"], one["text"]) for one in lines[:2]] == [("stdout", "first"), ("stderr", "a warning")]
    assert all(one["time"] and one["seq"] for one in lines)


def test_following_ends_with_the_sandbox(dir: Path, known: Scripted) -> None:  # noqa: A002 - a fixture
    command = [sys.executable, "-m", "strandline.cli", "--dir", str(dir), "sandbox", "logs", "-f", SB2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        known.print(SB2, "stdout", b"one\n")
        assert process.stdout.readline() == "one\n"
        known.print(SB2, "stdout", b"two\nlast words")
        known.views["sandboxes"] = [sandbox(SB2, state="DEAD")]
        known.poke("sandbox", SB2)
        assert process.stdout.read() == "two\nlast words\n"
        assert process.wait(20) == 0


def test_logs_of_a_sandbox_that_never_was_are_not_found(cli: Cli, known: Scripted) -> None:
    assert cli("sandbox", "logs", "-f", "sb-yyyyyyyyyyyyyyyyyyyy").exit_code == 3
