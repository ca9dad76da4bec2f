"""``strandline up``: everything on one machine, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from bus.logging import configure
from bus.server import ServerError
from domain.kernel.errors import Refused
from strandline.cli.exitcodes import ExitCode
from strandline.drivers import AUTO, HELP, choice
from strandline.installation import HostError, Installation, InUseError, default_dir
from strandline.options import Options
from strandline.ports import PortTakenError
from strandline.supervisor import Child

app = typer.Typer(add_completion=False)
DirOption = Annotated[Path | None, typer.Option("--dir", help="Data directory.", envvar="STRANDLINE_DIR")]


@app.command()
def up(
    dir: DirOption = None,  # noqa: A002 - the option's name
    port: Annotated[
        int, typer.Option(help="Port of the bus on loopback; 0: the one of last time, else a free one.", min=0, max=65_535)
    ] = 0,
    nodes: Annotated[int, typer.Option(help="How many nodes this machine plays.", min=1, max=64)] = 1,
    driver: Annotated[str, typer.Option(help=HELP, callback=choice)] = AUTO,
    registry_ca: Annotated[
        Path | None,
        typer.Option(
            "--registry-ca", help="PEM file of an authority to believe registries by, beside the system's.", exists=True, dir_okay=False
        ),
    ] = None,
    registry_insecure: Annotated[
        list[str] | None, typer.Option("--registry-insecure", metavar="HOST", help="Registry to speak plain HTTP with; repeatable.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            help="Serve Prometheus metrics on loopback: the control plane's here, the projector's on the next port, then the nodes'.",
            min=1,
            max=65_535,
        ),
    ] = None,
    artifacts_port: Annotated[
        int | None,
        typer.Option("--artifacts-port", metavar="PORT", help="Serve artifacts over HTTP on this port of loopback.", min=1, max=65_535),
    ] = None,
    egress: Annotated[
        bool, typer.Option("--egress", help="Let sandboxes reach the world, but no private network unless their policies say so. As root.")
    ] = False,
    identity_port: Annotated[
        int | None,
        typer.Option(
            "--identity-port",
            metavar="PORT",
            help="Issue tokens for sandboxes, and serve the issuer's documents on this port of loopback.",
            min=1,
            max=65_535,
        ),
    ] = None,
    identity_url: Annotated[
        str | None, typer.Option("--identity-url", metavar="URL", help="Where verifiers of tokens reach that port, if not there.")
    ] = None,
    stop_sandboxes: Annotated[bool, typer.Option("--stop-sandboxes", help="Tear sandboxes down at the end.")] = False,
) -> None:
    """Start everything on this machine and stay in the foreground; Ctrl-C drains and stops.

    Prints one line, `ready <url>`, when every part is ready. Sandboxes outlive it unless --stop-sandboxes.
    Exit code 4: another one runs in the directory, or the port that was asked for is taken; 1: this host cannot run it, and why.
    """
    configure(logging.WARNING)
    options = Options(
        dir=(dir or default_dir()).absolute(),
        port=port,
        nodes=nodes,
        driver=driver,
        registry_ca=registry_ca,
        registry_insecure=tuple(registry_insecure or ()),
        metrics_port=metrics_port,
        artifacts_port=artifacts_port,
        egress=egress,
        identity_port=identity_port,
        identity_url=identity_url,
    )
    if clash := options.clash():
        raise typer.BadParameter(clash)
    raise typer.Exit(uvloop.run(_run(options, stop_sandboxes=stop_sandboxes)))


async def _run(options: Options, *, stop_sandboxes: bool) -> int:
    installation = Installation(options, tell=lambda text: _err(f"note: {text}"))
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(installation.start())
    waiting = asyncio.create_task(stopping.wait())
    gave_up = asyncio.create_task(installation.supervisor.gave_up())
    tasks = (starting, waiting, gave_up)
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            sys.stdout.write(f"ready {starting.result()}\n")
            sys.stdout.flush()
            await _until(waiting, gave_up)
    except (InUseError, PortTakenError, HostError, ServerError, Refused, TimeoutError, OSError) as error:
        return _failed(error, options)
    else:
        return 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await installation.stop(stop_sandboxes=stop_sandboxes)


async def _until(waiting: asyncio.Task[Any], gave_up: asyncio.Task[Child]) -> None:
    """Until told to stop. Raises ``HostError`` when before that a part says that it cannot work here any more."""
    await asyncio.wait({waiting, gave_up}, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        raise HostError(gave_up.result())


def _failed(error: Exception, options: Options) -> int:
    """Say why, and what helps; the exit code."""
    match error:
        case InUseError():
            hint, code = f"strandline down --dir {options.dir}", ExitCode.CONFLICT
        case PortTakenError():
            hint, code = "another port; without --port it takes a free one", ExitCode.CONFLICT
        case HostError():
            hint, code = "strandline doctor", ExitCode.FAILED
        case _:
            hint, code = f"see {options.dir / 'logs'}, and: strandline doctor", ExitCode.FAILED
            error = Exception(f"it did not come up: {error}")
    _err(f"error: {error}\nhint: {hint}")
    return code


def _err(text: str) -> None:
    sys.stderr.write(f"{text}\n")
