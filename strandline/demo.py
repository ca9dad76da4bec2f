"""``strandline demo``: everything once, on a real image, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from bus.logging import configure
from domain.kernel.errors import Refused
from strandline.installation import Installation, Options, delete_all, purge
from strandline.tour.screen import Screen
from strandline.tour.story import Story

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    image: Annotated[
        str | None,
        typer.Option(help="Any image, e.g. docker://docker.io/library/alpine:3.20; without it one is composed from this host's tools."),
    ] = None,
    driver: Annotated[str, typer.Option(help="auto, process, oci or sim.")] = "auto",
    keep: Annotated[Path | None, typer.Option("--keep", help="Leave everything running in this directory instead of cleaning up.")] = None,
) -> None:
    """The main job, start to end: image, template, sandbox, snapshot, rollback, clones, compat, audit, replay."""
    configure(logging.ERROR)
    raise typer.Exit(uvloop.run(_run(image, driver, keep)))


async def _run(image: str | None, driver: str, keep: Path | None) -> int:
    directory = (keep or Path(tempfile.mkdtemp(prefix="strandline-demo-"))).absolute()
    installation = Installation(Options(dir=directory, driver=driver))
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: task.cancel() if task else None)
    screen = Screen()
    try:
        story = Story(screen, installation, image)
        await story.tell()
    except Refused as refusal:
        sys.stderr.write(f"\nerror: {refusal.code}: {refusal.message}\nhint: strandline doctor; logs are in {directory / 'logs'}\n")
        shutil.copytree(directory / "logs", Path(tempfile.gettempdir()) / f"strandline-demo-logs-{os.getpid()}", dirs_exist_ok=True)
        return 1
    except (TimeoutError, asyncio.CancelledError):
        sys.stderr.write("\nerror: the demo was stopped before its end\n")
        return 1
    else:
        return 0
    finally:
        await _clean_up(installation, keep, screen)


async def _clean_up(installation: Installation, keep: Path | None, screen: Screen) -> None:
    if keep is None:
        await delete_all(installation)
    await installation.stop()
    if keep is None:
        await asyncio.to_thread(purge, installation.dir)
        screen.fact(f"nothing is left of {installation.dir}" if not installation.dir.exists() else f"left behind: {installation.dir}")
        screen.done()
    else:
        screen.fact(f"kept in {keep}: strandline up --dir {keep}; strandline down --dir {keep} --purge")
