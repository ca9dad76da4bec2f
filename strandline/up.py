"""``strandline up``: everything on one machine, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from bus.logging import configure
from domain.kernel.errors import Refused
from strandline.installation import Installation, InUseError, Options, default_dir

app = typer.Typer(add_completion=False)
DirOption = Annotated[Path | None, typer.Option("--dir", help="Data directory.", envvar="STRANDLINE_DIR")]


@app.command()
def up(
    dir: DirOption = None,  # noqa: A002 - the option's name
    port: Annotated[
        int, typer.Option(help="Port of the bus on loopback; 0: the one of last time, else a free one.", min=0, max=65_535)
    ] = 0,
    nodes: Annotated[int, typer.Option(help="How many nodes this machine plays.", min=1, max=64)] = 1,
    driver: Annotated[str, typer.Option(help="auto, sim, process or oci.")] = "auto",
    stop_sandboxes: Annotated[bool, typer.Option("--stop-sandboxes", help="Tear sandboxes down at the end.")] = False,
) -> None:
    """Start everything on this machine and stay in the foreground; Ctrl-C drains and stops.

    Prints one line, `ready <url>`, when every part is ready. Sandboxes outlive it unless --stop-sandboxes.
    """
    configure(logging.WARNING)
    options = Options(dir=(dir or default_dir()).absolute(), port=port, nodes=nodes, driver=driver)
    raise typer.Exit(uvloop.run(_run(options, stop_sandboxes=stop_sandboxes)))


async def _run(options: Options, *, stop_sandboxes: bool) -> int:
    installation = Installation(options)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(installation.start())
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            sys.stdout.write(f"ready {starting.result()}\n")
            sys.stdout.flush()
            await waiting
    except InUseError as error:
        sys.stderr.write(f"error: {error}\nhint: strandline down --dir {options.dir}\n")
        return 4
    except (Refused, TimeoutError, OSError) as error:
        sys.stderr.write(f"error: it did not come up: {error}\nhint: see {options.dir / 'logs'}, and: strandline doctor\n")
        return 1
    else:
        return 0
    finally:
        for task in (starting, waiting):
            task.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await installation.stop(stop_sandboxes=stop_sandboxes)
