"""The typer application that the commands of ``strandline event`` enter, and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli import parse
from strandline.cli.verb import Run

app = typer.Typer(help="What happened: list, follow, export, verify.", no_args_is_help=True)

Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="SEQ|TIME", help="Behind this log position, or since an instant or a time ago (1h).", show_default=False
    ),
]
Until = Annotated[str | None, typer.Option("--until", metavar="SEQ|TIME", help="Up to this log position or instant.", show_default=False)]
Types = Annotated[list[str] | None, typer.Option("--type", "-t", help="Only these event types; * matches: sandbox.*.", show_default=False)]
Id = Annotated[str | None, typer.Option("--id", help="Only events of this sandbox, template, …", show_default=False)]


async def position(run: Run, text: str | None) -> int | None:
    """A log position from what ``--since`` and ``--until`` take."""
    if text is None:
        return None
    return int(text) if text.isdigit() else await run.s.events.position_at(parse.instant(text))
