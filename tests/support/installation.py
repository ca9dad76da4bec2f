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

from support import leftovers

STRANDLINE = [sys.executable, "-m", "strandline"]
UP_S = 90
DOWN_S = 60


class Running:
    """A running ``strandline up``."""

    def __init__(self, directory: Path, *arguments: str, user: int | None = None) -> None:
        self.dir = directory
        self._arguments = arguments
        self._user = user
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self._errors = directory.with_name(f"{directory.name}.err")

    def start(self) -> Running:
        """Start it, and return when it says that it is ready."""
        with self._errors.open("a") as errors:  # not a pipe: nobody would read it
            self.process = subprocess.Popen(
                [*STRANDLINE, "up", "--dir", str(self.dir), *self._arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                user=self._user,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.process.communicate(timeout=DOWN_S)
            raise AssertionError(f"not ready: {line!r}\n{self._errors.read_text()}\n{self.logs()}")
        self.url = line.split()[1]
        return self

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
        subprocess.run([*STRANDLINE, "down", "--dir", str(self.dir), "--purge"], check=True, timeout=120, user=self._user)


@contextlib.contextmanager
def up(directory: Path, *arguments: str, user: int | None = None) -> Iterator[Running]:
    """An installation that is gone when the block ends."""
    running = Running(directory, *arguments, user=user)
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
