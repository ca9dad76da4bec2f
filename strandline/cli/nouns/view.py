"""``strandline view …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import settled
from strandline.cli.columns import Column, Shape
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch
from strandline.client.views import NAMES

app = typer.Typer(help="Projections: look, travel in time, rebuild, compare.", no_args_is_help=True)

KNOWN = {
    "templates": shapes.TEMPLATE,
    "jobs": shapes.JOB,
    "replicas": shapes.REPLICA,
    "artifacts": shapes.ARTIFACT,
    "snapshots": shapes.SNAPSHOT,
    "sandboxes": shapes.SANDBOX,
    "nodes": shapes.NODE,
    "usage": shapes.USAGE,
}
View = Annotated[
    str, typer.Argument(metavar="VIEW", help="Its name (strandline view list).", autocompletion=lambda: list(NAMES), show_default=False)
]


@verb(
    app,
    "list",
    aliases=("ls",),
    watches=True,
    examples="""
    strandline view list
    strandline view list --watch
    """,
)
async def list_(run: Run) -> None:
    """The views there are, and how far each has read."""
    shape = shapes.fields("view", "state", "generation", "position", "error")
    if run.watch:
        await watch(run, shape, (), run.s.views.states)
    else:
        await run.out.rows(run.s.views.states(), shape)


@verb(
    app,
    "get",
    aliases=("show",),
    lists=True,
    watches=True,
    examples="""
    strandline view get sandboxes
    strandline view get sandboxes state=RUNNING --as-of 2026-11-20T09:00:00Z
    strandline view get templates --id tpl-3fa91c0d2b7e4a5566778899 --as-of 1200
    """,
)
async def get(
    run: Run,
    view: View,
    identifier: Annotated[str | None, typer.Option("--id", help="Only the row with this id.", show_default=False)] = None,
    as_of: args.AsOf = None,
) -> None:
    """The rows of a view, now or as they were."""
    moment = parse.moment(as_of) if as_of else None
    if identifier is not None:
        run.out.record(await run.s.views.get(view, identifier, as_of=moment), KNOWN.get(view, Shape("id", ())))
        return

    def read() -> AsyncIterator[Any]:
        return run.s.views.list(view, where=run.filters, as_of=moment, limit=run.limit)

    if run.watch:
        first = [row async for row in run.s.views.list(view, limit=1)]
        await watch(run, KNOWN.get(view) or _shape(first), (), read)
        return
    rows = [row async for row in read()]
    run.out.all(rows, KNOWN.get(view) or _shape(rows))


def _shape(rows: list[dict[str, Any]]) -> Shape:
    """A view nobody drew columns for: its own fields, the first one as the id."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id"]
    return Shape(names[0], tuple(Column(name.replace("_", " ").upper(), name, flex=True) for name in names))


@verb(
    app,
    "summary",
    examples="""
    strandline view summary sandboxes
    """,
)
async def summary(run: Run, view: View, as_of: args.AsOf = None) -> None:
    """The counts that a view offers."""
    run.out.record(await run.s.views.summary(view, as_of=parse.moment(as_of) if as_of else None), Shape("view", ()))


@verb(
    app,
    "rebuild",
    mutates=True,
    waits=600,
    examples="""
    strandline view rebuild sandboxes
    strandline view rebuild sandboxes --until 1200 --no-wait
    """,
)
async def rebuild(
    run: Run,
    view: View,
    until: Annotated[str | None, typer.Option("--until", metavar="SEQ|TIME", help="Stop there.", show_default=False)] = None,
) -> None:
    """Replay the log into a new generation beside the live view, then switch; nobody notices."""
    reply = await run.s.views.rebuild(view, until=parse.moment(until) if until else None, **run.call)
    settled(run, reply, f"view {view}", view=view)
    run.out.one({"view": view, **reply.model_dump(exclude={"id"}, exclude_none=True)}, shapes.fields("view", "generation", "settled"))


@verb(
    app,
    "digest",
    examples="""
    strandline view digest sandboxes
    strandline view digest sandboxes --as-of 1200 -o json
    """,
)
async def digest(run: Run, view: View, as_of: args.AsOf = None) -> None:
    """SHA-256 over a view: equal for equal views, however they came to be."""
    found = await run.s.views.digest(view, as_of=parse.moment(as_of) if as_of else None)
    run.out.one(asdict(found), shapes.fields("view", "seq", "generation", "sha256"))
