"""Whole installations for end-to-end tests: ``strandline up`` as a process, in a directory of its own, and no trace of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import leftovers, unprivileged

STRANDLINE = [sys.executable, "-m", "strandline"]
UP_S = 90
DOWN_S = 60


def strandline(user: int | None = None, home: Path | None = None, env: dict[str, str] | None = None) -> dict[str, Any]:
    """``args`` and what else ``subprocess`` needs to run the command line, as ``user`` with a ``home`` of its own."""
    if user is None:
        return {"args": list(STRANDLINE), "env": {**os.environ, **(env or {})}}
    assert home is not None
    whole = {**unprivileged.environment(home), **(env or {})}
    return {"args": [unprivileged.python(), "-m", "strandline"], "env": whole, "cwd": home, **unprivileged.who(user)}


class Running:
    """A running ``strandline up``. ``user``: whoever that is; the directory's parent, which has to be theirs, is their home.

    ``default``: no ``--dir`` is given, because ``env`` says that it is this one.
    """

    def __init__(
        self, directory: Path, *arguments: str, user: int | None = None, env: dict[str, str] | None = None, default: bool = False
    ) -> None:
        self.dir = directory
        self._arguments = arguments if default else ("--dir", str(directory), *arguments)
        self._how = strandline(user, directory.parent, env)
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self._errors = directory.with_name(f"{directory.name}.err")

    def start(self) -> Running:
        """Start it, and return when it says that it is ready."""
        with self._errors.open("a") as errors:  # not a pipe: nobody would read it
            how = {**self._how, "args": [*self._how["args"], "up", *self._arguments]}
            self.process = subprocess.Popen(**how, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.process.communicate(timeout=DOWN_S)
            raise AssertionError(f"not ready: {line!r}\n{self._errors.read_text()}\n{self.logs()}")
        self.url = line.split()[1]
        return self

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return self._errors.read_text()

    @property
    def pids(self) -> dict[str, Any]:
        """Process ids by part, as ``connect.json`` says."""
        return json.loads((self.dir / "connect.json").read_text())["pids"]

    def kill(self, part: str) -> int:
        """SIGKILL one part; the supervisor starts it again. Returns the pid that is gone."""
        pid = self.pids["nodes"][part] if part.startswith("node-") else self.pids[part]
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def stop(self) -> int:
        """SIGTERM, and wait until it has drained."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=DOWN_S)
        return self.process.returncode

    def logs(self) -> str:
        """What the parts logged last."""
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in sorted((self.dir / "logs").glob("*.log")))

    def purge(self) -> None:
        """Remove every trace."""
        leftovers.remember(self.dir)
        how = {**self._how, "args": [*self._how["args"], "down", "--dir", str(self.dir), "--purge"]}
        subprocess.run(**how, check=True, timeout=120)


@contextlib.contextmanager
def up(
    directory: Path, *arguments: str, user: int | None = None, env: dict[str, str] | None = None, default: bool = False
) -> Iterator[Running]:
    """An installation that is gone when the block ends."""
    running = Running(directory, *arguments, user=user, env=env, default=default)
    try:
        yield running.start()
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()
        running.purge()


def compose_image(directory: Path) -> str:
    """A small genuine image from this host's tools, as a reference for ``template.create``."""
    subprocess.run([sys.executable, "-m", "agents.images.compose", str(directory)], check=True, stdout=subprocess.DEVNULL)
    return f"oci:{directory}"
