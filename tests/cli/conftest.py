"""The command line, run in this process against a scripted control plane; and the things that it talks about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import NOW, Cli
from support.responder import Scripted, serve
from typer.testing import CliRunner, Result

import domain.catalogue
from strandline.cli import columns
from strandline.cli.main import app

domain.catalogue.load()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Scripted]]:
    directory = tmp_path_factory.mktemp("installation")
    server, scripted = serve(directory)
    yield directory, scripted
    scripted.stop()
    server.stop()


@pytest.fixture
def control(installation: tuple[Path, Scripted]) -> Scripted:
    """The scripted control plane, with nothing in it."""
    installation[1].reset()
    return installation[1]


@pytest.fixture
def dir(installation: tuple[Path, Scripted]) -> Path:  # noqa: A001 - what the option is called
    return installation[0]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, a clock that stands still, and no settings from outside."""
    for name in [name for name in os.environ if name.startswith("STRANDLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(columns, "now", lambda: NOW)
    return tmp_path


@pytest.fixture
def cli(dir: Path, control: Scripted) -> Cli:  # noqa: A002 - the fixture above
    """``cli("sandbox", "list")``: the result of the command line in that installation."""

    def invoke(*words: str, input: str | bytes | None = None) -> Result:  # noqa: A002 - as the runner calls it
        return CliRunner().invoke(app, ["--dir", str(dir), *words], input=input, catch_exceptions=False)

    return invoke
