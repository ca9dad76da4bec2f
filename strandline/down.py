"""``strandline down``: stop what runs in a directory, and with ``--purge`` remove every trace of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from strandline.installation import CONNECT, default_dir, purge, runs
from strandline.orphans import end_orphans

app = typer.Typer(add_completion=False)
DOWN_S: Final = 60.0
"""How long ``strandline up`` may take to drain."""


@app.command()
def down(
    dir: Annotated[Path | None, typer.Option("--dir", help="Data directory.", envvar="STRANDLINE_DIR")] = None,  # noqa: A002 - the option's name
    purge_all: Annotated[bool, typer.Option("--purge", help="Remove sandboxes, state and logs too.")] = False,
) -> None:
    """Stop what `strandline up` runs in a directory; with --purge remove every trace of it."""
    directory = (dir or default_dir()).absolute()
    pid = _pid_of_up(directory)
    if pid is not None:
        _end(pid)
    end_orphans(directory)
    if purge_all and directory.is_dir() and not purge(directory):
        typer.echo(
            f"error: not everything could be removed; what is left is in {directory}\nhint: mend what is said above, and again", err=True
        )
        raise typer.Exit(1)


def _pid_of_up(directory: Path) -> int | None:
    """The process of ``strandline up``, if it is still that."""
    if not runs(directory):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json.loads((directory / CONNECT).read_text())["pids"]["up"])
        if b"strandline" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
