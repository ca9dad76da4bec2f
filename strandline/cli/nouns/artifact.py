"""``strandline artifact …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from strandline.cli import parse, shapes
from strandline.cli.verb import Run, verb
from strandline.cli.watching import until, watch
from strandline.client import Call

app = typer.Typer(help="Root file systems that templates share.", no_args_is_help=True)


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline artifact list
    strandline artifact list status=READY -o wide
    """,
)
async def list_(run: Run) -> None:
    """Artifacts."""

    def read() -> AsyncIterator[Any]:
        return run.s.artifacts.list(limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.ARTIFACT, ("artifact",), read)
    else:
        await run.out.rows(read(), shapes.ARTIFACT)


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
    "link",
    mutates=True,
    examples="""
    strandline artifact link rfs-3fa9 --for 15m
    strandline artifact link rfs-3fa9 -o json
    """,
)
async def link(
    run: Run,
    artifact: Annotated[str, typer.Argument(help="Its id, or the first characters of it.", show_default=False)],
    lasting: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long the token holds, at most 7d.")] = "1h",
) -> None:
    """Where an artifact's bytes are over HTTP, and the token to say there as `Authorization: Bearer TOKEN`."""
    reply = await run.s.artifacts.link(await run.id("artifact", artifact), ttl_s=round(parse.seconds(lasting)), **run.call)
    run.out.one(reply, shapes.fields("artifact_id", "url", "token", "expires_at", "sha256", "size_bytes"))


@verb(
    app,
    "collect",
    aliases=("gc",),
    mutates=True,
    waits=60,
    patient=False,
    examples="""
    strandline artifact collect --dry-run
    strandline artifact collect -o json
    """,
)
async def collect(run: Run, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which ones would go.")] = False) -> None:
    """Remove artifacts that failed, or that nobody has needed for a week."""
    reply = await run.s.artifacts.collect(dry_run=dry_run, **run.call | Call(wait_s=0))
    going = set(reply.deleted) if isinstance(reply.deleted, list) and not dry_run else set()

    async def gone() -> bool:
        return not going & {artifact.artifact_id async for artifact in run.s.artifacts.list()}

    if run.wait:
        await until(run, gone, ("artifact",), "every artifact is gone")
    run.out.one(reply, shapes.fields("deleted", "kept"))
