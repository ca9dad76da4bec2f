"""``strandline compat …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import settled
from strandline.cli.columns import EMPTY, Column, Shape
from strandline.cli.output import Format
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch

app = typer.Typer(help="Do templates still fit what the nodes run?", no_args_is_help=True)


@verb(
    app,
    "matrix",
    aliases=("list", "ls"),
    lists=True,
    watches=True,
    examples="""
    strandline compat matrix
    strandline compat matrix overall=STALE
    strandline compat matrix -o json
    """,
)
async def matrix(run: Run, as_of: args.AsOf = None) -> None:
    """Templates down, nodes across: OK, STALE (redo it), UNKNOWN (adopt it) or MISSING."""

    def read() -> AsyncIterator[Any]:
        return run.s.compat.list(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, _shape([]), ("replica", "node", "template"), read)
        return
    rows = read()
    if run.out.format not in {Format.TABLE, Format.WIDE}:
        await run.out.rows(rows, _shape([]))
        return
    found = [row.raw() async for row in rows]
    nodes = sorted({cell["node_id"] for row in found for cell in row.get("nodes", ())})
    run.out.all([_across(row) for row in found], _shape(nodes))


def _across(row: dict[str, Any]) -> dict[str, Any]:
    cells = {cell["node_id"]: cell["compat"] for cell in row.get("nodes", ())}
    return {**row, "cell": cells}


def _shape(nodes: list[str]) -> Shape:
    across = [Column(node, f"cell.{node}", _cell, state=True) for node in nodes]
    return Shape(
        "template_id",
        (Column("TEMPLATE", "template_id"), Column("POLICY", "policy", wide=True), Column("OVERALL", "overall", state=True), *across),
    )


def _cell(value: Any) -> str:
    return EMPTY if value is None else str(value)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline compat get python -o yaml
    """,
)
async def get(run: Run, template: args.Template) -> None:
    """One template's row: per node what it was made with and what the node runs now."""
    row = await run.s.compat.get(await run.id("template", template))
    if run.out.format in {Format.TABLE, Format.WIDE}:
        cells = [cell.raw() for cell in row.nodes]
        columns = [
            Column("NODE", "node_id"),
            Column("COMPAT", "compat", state=True),
            Column("BOUND", "bound"),
            Column("CURRENT", "current"),
        ]
        run.out.all(cells, Shape("node_id", columns))
    else:
        run.out.one(row, _shape([]))


@verb(
    app,
    "summary",
    examples="""
    strandline compat summary
    strandline compat summary --as-of 2h
    """,
)
async def summary(run: Run, as_of: args.AsOf = None) -> None:
    """How many replicas are stale, missing or unknown."""
    run.out.one(await run.s.compat.summary(as_of=parse.moment(as_of) if as_of else None), shapes.SUMMARY)


@verb(
    app,
    "what-if",
    lists=True,
    watches=True,
    examples="""
    strandline compat what-if n1 --guest-image 2026.12
    strandline compat what-if n1 --agent 2.0 what_if=STALE
    """,
)
async def what_if(
    run: Run,
    node: args.Node,
    guest_image: Annotated[str | None, typer.Option("--guest-image", help="Its guest image.", show_default=False)] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Its agent.", show_default=False)] = None,
    kernel: Annotated[
        str | None, typer.Option("--kernel", help="Its kernel, which never makes anything stale.", show_default=False)
    ] = None,
    as_of: args.AsOf = None,
) -> None:
    """What would be stale if a node ran other versions. Nothing changes by asking."""
    identifier = await run.id("node", node)
    read = partial(
        run.s.compat.what_if,
        identifier,
        as_of=parse.moment(as_of) if as_of else None,
        limit=run.limit,
        guest_image=guest_image,
        agent=agent,
        kernel=kernel,
        **run.filters,
    )
    if run.watch:
        await watch(run, WHAT_IF, ("replica", "node", "template"), read)
    else:
        await run.out.rows(read(), WHAT_IF)


WHAT_IF = Shape(
    "template_id",
    (
        Column("TEMPLATE", "template_id"),
        Column("NOW", "compat", state=True),
        Column("WHAT IF", "what_if", state=True),
        Column("POLICY", "policy", wide=True),
        Column("BOUND", "bound"),
        Column("SUPPOSED", "supposed"),
    ),
)


@verb(
    app,
    "rescan",
    mutates=True,
    waits=30,
    examples="""
    strandline compat rescan
    strandline compat rescan n1 n2
    """,
)
async def rescan(
    run: Run,
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="NODE", help="Only these; all when none is named.", show_default=False)
    ] = None,
) -> None:
    """Ask nodes what they run now."""
    reply = settled(run, await run.s.compat.rescan(nodes or None, **run.call), "the scan")
    run.out.one(reply, shapes.fields("changed", "seq"))
