"""``strandline artifact …``"""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli import shapes
from strandline.cli.verb import Run, verb

app = typer.Typer(help="Root file systems that templates share.", no_args_is_help=True)


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    examples="""
    strandline artifact list
    strandline artifact list status=READY -o wide
    """,
)
async def list_(run: Run) -> None:
    """Artifacts."""
    await run.out.rows(run.s.artifacts.list(limit=run.limit, **run.filters), shapes.ARTIFACT)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline artifact get rfs-3fa9
    """,
)
async def get(
    run: Run, artifact: Annotated[str, typer.Argument(help="Its id, or the first characters of it.", show_default=False)]
) -> None:
    """One artifact with all its fields."""
    run.out.record(await run.s.artifacts.get(await run.id("artifact", artifact)), shapes.ARTIFACT)


@verb(
    app,
    "collect",
    aliases=("gc",),
    mutates=True,
    examples="""
    strandline artifact collect --dry-run
    strandline artifact collect -o json
    """,
)
async def collect(run: Run, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which ones would go.")] = False) -> None:
    """Remove artifacts that failed, or that nobody has needed for a week."""
    run.out.one(await run.s.artifacts.collect(dry_run=dry_run, **run.call), shapes.fields("deleted", "kept"))
