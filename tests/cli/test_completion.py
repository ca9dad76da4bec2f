"""Completion of ids in a shell: what is there, quickly, or nothing at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import SB2, SB3, TEMPLATE, TPL, sandbox
from support.responder import Scripted


def complete(words: str, **env: str) -> list[str]:
    """What bash would offer for the last word."""
    settings = {"_STRANDLINE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), **env}
    done = subprocess.run(
        [sys.executable, "-m", "strandline.cli"], env={**os.environ, **settings}, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


@pytest.fixture
def things(control: Scripted) -> Scripted:
    control.views["sandboxes"] = [sandbox(), sandbox(SB2, name=""), sandbox(SB3, state="DEAD", name="old")]
    control.views["templates"] = [TEMPLATE]
    return control


def test_verbs_and_nouns_are_offered() -> None:
    assert complete("strandline sandb") == ["sandbox"]
    assert set(complete("strandline sandbox re")) == {"resume"}


def test_ids_and_names_of_living_things_are_offered(dir: Path, things: Scripted) -> None:  # noqa: A002 - a fixture
    assert complete("strandline sandbox exec ", STRANDLINE_DIR=str(dir)) == ["web", SB2]
    assert complete("strandline sandbox get sb-k3f2b", STRANDLINE_DIR=str(dir)) == [SB2]
    assert complete("strandline template get pyt", STRANDLINE_DIR=str(dir)) == ["python"]
    assert complete("strandline template get tpl-3", STRANDLINE_DIR=str(dir)) == [TPL]


def test_flags_before_the_word_say_where_to_ask(dir: Path, things: Scripted) -> None:  # noqa: A002 - a fixture
    assert complete(f"strandline --dir {dir} --project blue template get p") == ["python"]
    assert things.asked[-1].project == "blue"


def test_nobody_there_means_nothing_is_offered_soon(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert complete("strandline sandbox get ", STRANDLINE_URL="nats://127.0.0.1:1") == []
    assert time.monotonic() - begun < 5
