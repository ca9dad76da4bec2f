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
from typing import Annotated, Final

import typer
import uvloop

from bus.logging import configure
from bus.server import ServerError
from domain.kernel.errors import Refused
from strandline.cli.exitcodes import ExitCode
from strandline.detached import Detached
from strandline.drivers import AUTO, HELP, choice
from strandline.installation import HostError, Installation, InUseError, delete_all, purge
from strandline.options import Options
from strandline.tour.screen import Screen
from strandline.tour.story import Story
from strandline.traces import Traces

app = typer.Typer(add_completion=False)

FORESEEN: Final = (Refused, RuntimeError, ServerError, HostError, InUseError, TimeoutError, OSError)
"""Ways to fail that are said in a line; anything else is a fault of the demo itself."""


def _unused(directory: Path | None) -> Path | None:
    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise typer.BadParameter(f"{directory} is not an empty directory")
    return directory


@app.command()
def demo(
    image: Annotated[
        str | None,
        typer.Option(help="Any image, e.g. docker://docker.io/library/alpine:3.20; without it one is composed from this host's tools."),
    ] = None,
    driver: Annotated[str, typer.Option(help=HELP, callback=choice)] = AUTO,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", callback=_unused, help="Leave everything running in this empty directory instead of cleaning up."),
    ] = None,
) -> None:
    """The main job, start to end: image, template, sandbox, snapshot, rollback, clones, compat, audit, replay.

    Exit code 1: a step failed, or something was left on the host, and what; 130: interrupted.
    """
    configure(logging.ERROR)
    raise typer.Exit(uvloop.run(_run(image, driver, keep)))


async def _run(image: str | None, driver: str, keep: Path | None) -> int:
    directory = (keep or Path(tempfile.mkdtemp(prefix="strandline-demo-"))).absolute()
    installation = Detached(directory, driver) if keep else Installation(Options(dir=directory, driver=driver))
    screen = Screen()
    _heed_signals()
    try:
        await Story(screen, installation, image).tell(keep=keep is not None)
        code = ExitCode.OK
    except asyncio.CancelledError:
        code = ExitCode.INTERRUPTED
        _err("error: the demo was stopped before its end")
    except FORESEEN as error:
        code = ExitCode.FAILED
        _err(f"error: {_text(error)}\nhint: strandline doctor; logs are in {_logs(directory, keep)}")
    finally:
        left = await _clean_up(installation, screen) if isinstance(installation, Installation) else _kept(directory, screen)
    if left:
        _err("error: this was left on the host:\n" + "\n".join(f"  {line}" for line in left) + "\nhint: " + _mend(directory))
        return code or ExitCode.FAILED
    if not code:
        screen.done()
    return code


def _heed_signals() -> None:
    """The first Ctrl-C ends the story; cleaning up is not interrupted by further ones."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)


async def _clean_up(installation: Installation, screen: Screen) -> list[str]:
    """Remove everything; what could not be removed."""
    try:
        await delete_all(installation)
    except FORESEEN as error:  # the purge ends what the control plane could not
        _err(f"note: {_text(error)}")
    await installation.stop()
    traces = Traces(installation.dir)
    clean = await asyncio.to_thread(purge, installation.dir)
    left = await asyncio.to_thread(traces.left)
    if clean and not left:
        screen.fact(f"nothing is left of {installation.dir}: no file, process, mount, control group or interface")
    return left or ([] if clean else [f"file {installation.dir}"])


def _kept(directory: Path, screen: Screen) -> list[str]:
    strandline = "strandline" if shutil.which("strandline") else os.path.relpath(Path(sys.executable).with_name("strandline"))
    screen.fact(f"everything goes on in {directory}; look at it, and end it:")
    screen.fact(f"  {strandline} --dir {directory} sandbox list", "cyan")
    screen.fact(f"  {strandline} down --dir {directory} --purge", "cyan")
    return []


def _logs(directory: Path, keep: Path | None) -> Path:
    """Where the logs are after this has cleaned up."""
    logs = directory / "logs"
    if keep is None and logs.is_dir():
        copied = Path(tempfile.gettempdir()) / f"strandline-demo-logs-{os.getpid()}"
        return Path(shutil.copytree(logs, copied, dirs_exist_ok=True))
    return logs


def _text(error: BaseException) -> str:
    if isinstance(error, Refused):
        return f"{error.code}: {error.message}"
    return str(error) or ("it took too long" if isinstance(error, TimeoutError) else type(error).__name__)


def _mend(directory: Path) -> str:
    return f"mend what is said above, and: strandline down --dir {directory} --purge"


def _err(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{text}\n")
