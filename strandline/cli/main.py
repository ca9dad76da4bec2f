"""The root of the command line: global options, and the nouns, each loaded when it is asked for."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from strandline.cli.output import FORMATS, Format
from strandline.cli.root import Root
from strandline.cli.style import out

THINGS = "Things"
LOG = "The log"
INSTALLATION = "The installation"

COMMANDS: dict[str, tuple[str, str, str]] = {
    "template": ("strandline.cli.nouns.template", THINGS, "What sandboxes start from."),
    "sandbox": ("strandline.cli.nouns.sandbox", THINGS, "Isolated workloads: create, use, freeze, multiply, end."),
    "snapshot": ("strandline.cli.nouns.snapshot", THINGS, "Memory and disk of a sandbox at one moment."),
    "job": ("strandline.cli.nouns.job", THINGS, "Long operations and how far they have come."),
    "artifact": ("strandline.cli.nouns.artifact", THINGS, "Root file systems that templates share."),
    "node": ("strandline.cli.nouns.node", THINGS, "Machines that run sandboxes."),
    "compat": ("strandline.cli.nouns.compat", THINGS, "Do templates still fit what the nodes run?"),
    "pool": ("strandline.cli.nouns.pool", THINGS, "Sandboxes that wait to be handed over."),
    "rollout": ("strandline.cli.nouns.rollout", THINGS, "Upgrades of nodes, a few at a time."),
    "disk": ("strandline.cli.nouns.disk", THINGS, "Storage that outlives sandboxes."),
    "event": ("strandline.cli.nouns.event", LOG, "What happened: list, follow, export, verify."),
    "view": ("strandline.cli.nouns.view", LOG, "Projections: look, travel in time, rebuild, compare."),
    "api": ("strandline.cli.nouns.api", LOG, "Any command or query, raw."),
    "up": ("strandline.up", INSTALLATION, "Start everything on this machine."),
    "down": ("strandline.down", INSTALLATION, "Stop it, or remove every trace of it."),
    "demo": ("strandline.demo", INSTALLATION, "The main job, on a real image, start to end."),
    "doctor": ("strandline.doctor", INSTALLATION, "What this machine lacks, and the command that mends it."),
    "context": ("strandline.cli.nouns.context", INSTALLATION, "Named places to connect to."),
}
"""Name → (module with a typer application ``app``, help panel, one line of help)."""


class Main(Root):
    """The root group with our commands."""

    table = COMMANDS
    placed = frozenset({"up", "down"})
    unplaced = {"demo": "the demo makes a directory of its own; --keep DIR, after the word demo, leaves it running in that one"}


app = typer.Typer(
    name="strandline",
    cls=Main,
    help="Sandboxes from images, on your own machines, with every change in a log.\n\n"
    "Connection options may stand anywhere; [bold]strandline NOUN --help[/] and [bold]strandline NOUN VERB --help[/] show examples.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 120},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 auth, 6 unavailable (retryable), 7 timeout.",
)


def _version(asked: bool) -> None:
    if asked:
        out(f"strandline {importlib.metadata.version('strandline')}")
        raise typer.Exit


@app.callback()
def root(
    dir: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option("--dir", help="Data directory of the installation. \\[env: STRANDLINE_DIR]", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="NATS URL instead of a directory. \\[env: STRANDLINE_URL]", show_default=False)
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Whose things. \\[env: STRANDLINE_PROJECT] (default: default)", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="A named place (strandline context). \\[env: STRANDLINE_CONTEXT]", show_default=False)
    ] = None,
    creds: Annotated[
        str | None, typer.Option("--creds", help="Credentials file for --url. \\[env: STRANDLINE_CREDS]", show_default=False)
    ] = None,
    output: Annotated[Format | None, typer.Option("--output", "-o", metavar="FORMAT", help=FORMATS, show_default=False)] = None,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)] = False,
) -> None:
    """Global options are read from the context by the commands themselves."""


def main() -> None:
    """The entry point ``strandline``."""
    sys.exit(app())
