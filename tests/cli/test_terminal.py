"""What a person sees: colour, redrawing, bars and questions, on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command_line import JOB, SB, SB2, TEMPLATE, TPL, job, sandbox
from support.responder import Scripted

pytestmark = pytest.mark.timeout(60)  # an interruption that is lost would wait for ever

SILENCE_S = 20
TALKATIVE = """
import asyncio, runpy, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: [task.print_stack() for task in asyncio.all_tasks()])
sys.argv[0] = "strandline"
runpy.run_module("strandline.cli", run_name="__main__", alter_sys=True)
"""
"""The command line, which says on SIGUSR1 what all its tasks wait for."""

COLOUR = re.compile(r"\x1b\[(?:\d+;)*3[0-7]m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command line on a terminal of 100 columns."""

    def __init__(self, *words: str, **env: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **env}
        self._process = subprocess.Popen([sys.executable, "-c", TALKATIVE, *words], stdin=slave, stdout=slave, stderr=slave, env=settings)
        os.close(slave)
        self.text = ""

    def until(self, *wanted: str) -> str:
        """Read until all of these have been seen, or the end."""
        while not wanted or not all(one in self.text for one in wanted):
            if not select.select([self._master], [], [], SILENCE_S)[0]:
                raise AssertionError(self._last_words(wanted))
            try:
                data = os.read(self._master, 65_536)
            except OSError:
                break
            self.text += data.decode(errors="replace")
        return self.text

    def _last_words(self, wanted: tuple[str, ...]) -> str:
        """What it is at, for whoever wants to know why nothing comes."""
        state = [line for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines() if line.startswith(("State", "Sig"))]
        self._process.send_signal(signal.SIGUSR1)
        said = ""
        while select.select([self._master], [], [], 1)[0]:
            said += os.read(self._master, 65_536).decode(errors="replace")
        return f"{wanted} did not come for {SILENCE_S} s: {state}\n{self.text}\n{said}"

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        self.until()
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(dir: Path, control: Scripted) -> Iterator[Callable[..., Terminal]]:  # noqa: A002 - a fixture
    control.views = {
        "sandboxes": [sandbox()],
        "templates": [{**TEMPLATE, "image": "docker://registry.example/" + "long/" * 30}],
        "jobs": [job()],
    }
    opened: list[Terminal] = []

    def start(*words: str, **env: str) -> Terminal:
        opened.append(Terminal("--dir", str(dir), *words, **env))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_states_are_coloured_on_a_terminal_and_not_when_colour_is_unwanted(terminal: Callable[..., Terminal]) -> None:
    assert COLOUR.search(terminal("sandbox", "list").until("RUNNING", "in "))
    plain = terminal("sandbox", "list", NO_COLOR="1")
    assert plain.end() == 0
    assert "RUNNING" in plain.text
    assert not COLOUR.search(plain.text)


def test_a_wide_table_gives_way_where_it_may_and_never_in_the_id(terminal: Callable[..., Terminal]) -> None:
    one = terminal("template", "list")
    assert one.end() == 0
    lines = ESCAPE.sub("", one.text).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert TPL in lines[1]
    assert "…" in lines[1]


def test_json_stays_plain_on_a_terminal(terminal: Callable[..., Terminal]) -> None:
    one = terminal("sandbox", "list", "-o", "json")
    assert one.end() == 0
    assert "\x1b" not in one.text


def test_deleting_everything_asks_and_takes_no_for_an_answer(terminal: Callable[..., Terminal], control: Scripted) -> None:
    one = terminal("sandbox", "delete", "--all")
    assert "Delete 1 sandbox? [y/N]" in one.until("[y/N]")
    one.type("n\n")
    assert one.end() == 1
    assert control.commands == []
    control.replies["sandbox.delete"] = {"sandbox_id": SB, "state": "DEAD", "settled": True}
    yes = terminal("sandbox", "delete", "--all")
    yes.until("[y/N]")
    yes.type("y\n")
    assert yes.end() == 0
    assert len(control.commands) == 1


def test_a_template_in_the_making_shows_a_bar_per_phase(terminal: Callable[..., Terminal], control: Scripted) -> None:
    control.replies["template.create"] = {"template_id": TPL, "job_id": JOB}
    control.views["jobs"] = [job(status="RUNNING", phase="PULLING", progress=12)]
    one = terminal("template", "create", "docker://registry.example/python:3.12")
    one.until("PULLING", "10 B of 10 B, 1 of 1 layers")
    control.views["jobs"] = [job()]
    control.poke("job", JOB)
    assert one.end() == 0
    assert "━" in one.text
    assert "READY" in one.text


def test_a_watched_list_is_drawn_again_in_place(terminal: Callable[..., Terminal], control: Scripted) -> None:
    one = terminal("sandbox", "list", "--watch")
    one.until(SB)
    control.views["sandboxes"].append(sandbox(SB2, name="another"))
    control.poke("sandbox", SB2)
    one.until(SB2)
    assert "\x1b[1A" in one.text, "the cursor went up over the old lines"
    one.interrupt()
    assert one.end() == 130
