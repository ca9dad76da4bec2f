"""``strandline job …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import typer

from strandline.cli import args, shapes
from strandline.cli.output import Format
from strandline.cli.progress import follow_job
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch

app = typer.Typer(help="Long operations and how far they have come.", no_args_is_help=True)


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline job list status=RUNNING
    strandline job list resource_id=tpl-3fa91c0d2b7e4a5566778899 -o wide
    """,
)
async def list_(run: Run) -> None:
    """Jobs."""

    def read() -> AsyncIterator[Any]:
        return run.s.jobs.list(limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.JOB, ("job",), read)
    else:
        await run.out.rows(read(), shapes.JOB)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline job get 3fa9
    strandline job get 3fa9 -o json
    """,
)
async def get(run: Run, job: args.Job) -> None:
    """One job with all its fields."""
    run.out.record(await run.s.jobs.get(await run.id("job", job)), shapes.JOB)


@verb(
    app,
    "wait",
    waits=600,
    examples="""
    strandline job wait 3fa9 --timeout 10m
    """,
)
async def wait(run: Run, job: args.Job) -> None:
    """Wait for a job's end with a progress bar; a failed job's exit code says why."""
    run.out.one(await follow_job(run, await run.id("job", job)), shapes.JOB)


@verb(
    app,
    "watch",
    examples="""
    strandline job watch 3fa9
    strandline job watch 3fa9 -o jsonl
    """,
)
async def watch_(run: Run, job: args.Job) -> None:
    """Print the job after every change until it has ended."""
    if run.out.format is Format.TABLE:
        run.out.format = Format.JSONL
    await run.out.rows(run.s.jobs.watch(await run.id("job", job)), shapes.JOB)


@verb(
    app,
    "cancel",
    mutates=True,
    examples="""
    strandline job cancel 3fa9
    """,
)
async def cancel(run: Run, job: args.Job) -> None:
    """End a job that makes a template ready; what it had begun is cleaned up."""
    run.out.one(await run.s.jobs.cancel(await run.id("job", job), **run.call), shapes.fields("status"))
