"""``strandline pool …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import settled
from strandline.cli.columns import Column, Shape, remaining
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch

app = typer.Typer(help="Sandboxes of a template that are kept running, so that a create is a hand-over.", no_args_is_help=True)

POOL: Final = Shape(
    "template_id",
    (
        Column("TEMPLATE", "template_id"),
        Column("STATE", "state", state=True),
        Column("DESIRED", "desired", right=True),
        Column("CURRENT", "current", right=True),
        Column("READY", "ready", right=True),
        Column("HANDED OVER", "handed_over", right=True),
        Column("MISSED", "missed", right=True),
        Column("CRASHES", "crashes", right=True),
        Column("COOLING OFF", "cooldown_until", remaining),
        Column("MAXIMUM", "maximum", right=True, wide=True),
        Column("WARM", "warm", wide=True),
        Column("IDLE S", "idle_s", right=True, wide=True),
    ),
)
DONE: Final = shapes.fields("template_id", "state", "desired", "current", "ready")


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline pool list
    strandline pool list state=ACTIVE --watch
    """,
)
async def list_(run: Run, every: Annotated[bool, typer.Option("--all", "-a", help="Also those that are gone.")] = False) -> None:
    """Pools, and how full they are; those that are not gone, without --all or a state= filter."""
    gone_too = every or "state" in run.filters

    async def read() -> AsyncIterator[Any]:
        async for pool in run.s.pools.list(limit=run.limit, **run.filters):
            if gone_too or pool.state != "GONE":
                yield pool

    if run.watch:
        await watch(run, POOL, ("pool",), read)
    else:
        await run.out.rows(read(), POOL)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline pool get python -o json
    """,
)
async def get(run: Run, template: args.Template, as_of: args.AsOf = None) -> None:
    """The pool of a template with its members."""
    found = await run.s.pools.get(await run.id("template", template), as_of=parse.moment(as_of) if as_of else None)
    run.out.record(found, POOL)


@verb(
    app,
    "set",
    mutates=True,
    waits=120,
    examples="""
    strandline pool set python 5
    strandline pool set python 2 --idle 15m
    strandline pool set python 3 --no-warm
    """,
)
async def set_(
    run: Run,
    template: args.Template,
    desired: Annotated[int | None, typer.Argument(min=0, max=20, help="How many; none: as before.", show_default=False)] = None,
    maximum: Annotated[int | None, typer.Option("--maximum", min=1, max=20, help="Never more.", show_default=False)] = None,
    warm: Annotated[bool | None, typer.Option("--warm/--no-warm", help="Hand them over to callers.", show_default=False)] = None,
    idle: Annotated[
        str | None,
        typer.Option("--idle", metavar="DURATION|never", help="One that nobody used for longer goes, for good.", show_default=False),
    ] = None,
) -> None:
    """Keep so many sandboxes of a template running, and wait until they do."""
    reply = await run.s.pools.set(
        template, desired=desired, maximum=maximum, warm=warm, idle_s=parse.ttl(idle) if idle else None, **run.call
    )
    run.out.one(settled(run, reply, f"the pool of {template}", template_id=reply.template_id), DONE)


@verb(
    app,
    "delete",
    aliases=("rm",),
    mutates=True,
    waits=60,
    examples="""
    strandline pool delete python
    """,
)
async def delete(run: Run, template: args.Template) -> None:
    """Stop what waits in a pool. Sandboxes that were handed over stay."""
    reply = await run.s.pools.delete(template, **run.call)
    run.out.one(settled(run, reply, f"the pool of {template}", template_id=reply.template_id), DONE)
