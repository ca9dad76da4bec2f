"""``strandline rollout …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.columns import Column, Shape
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch

app = typer.Typer(help="Upgrades of nodes, a few at a time; every template keeps a ready replica.", no_args_is_help=True)

Identifier = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its id, or the first characters of it.", show_default=False)]
ROLLOUT: Final = Shape(
    "rollout_id",
    (
        Column("ID", "rollout_id"),
        Column("STATE", "state", state=True),
        Column("DONE", "done", right=True),
        Column("OF", "total", right=True),
        Column("AT ONCE", "at_once", right=True, wide=True),
        Column("VERSIONS", "versions", flex=True),
        Column("HELD BY", "held_by", flex=True),
        Column("ERROR", "error", flex=True),
    ),
)


@verb(
    app,
    "start",
    mutates=True,
    waits=600,
    examples="""
    strandline rollout start --guest-image 2026.12 --no-wait
    strandline rollout start n1 n2 --agent 2.0 --stop-after 1h
    """,
)
async def start(
    run: Run,
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="NODE", help="Only these; all when none is named.", show_default=False)
    ] = None,
    guest_image: Annotated[str | None, typer.Option("--guest-image", help="What they shall run.", show_default=False)] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="What they shall run.", show_default=False)] = None,
    kernel: Annotated[str | None, typer.Option("--kernel", help="What they shall run.", show_default=False)] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", help="Nodes out of service at a time.", show_default=False)] = None,
    stop_after: Annotated[
        str | None, typer.Option("--stop-after", metavar="DURATION", help="Then stop what a node still has.", show_default=False)
    ] = None,
) -> None:
    """Drain nodes, have them upgraded, make again what is stale, and open them. Upgrade a machine when it says UPGRADING."""
    reply = await run.s.rollouts.start(
        nodes,
        guest_image=guest_image,
        agent=agent,
        kernel=kernel,
        at_once=at_once,
        stop_after_s=None if stop_after is None else parse.seconds(stop_after),
        **run.call,
    )
    run.out.one(reply, shapes.fields("rollout_id", "state", "settled"))


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline rollout list state=RUNNING --watch
    """,
)
async def list_(run: Run) -> None:
    """Rollouts."""

    def read() -> AsyncIterator[Any]:
        return run.s.rollouts.list(limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, ROLLOUT, ("rollout",), read)
    else:
        await run.out.rows(read(), ROLLOUT)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline rollout get ro-3fa9 -o json
    """,
)
async def get(run: Run, rollout: Identifier, as_of: args.AsOf = None) -> None:
    """One rollout: at which step each of its nodes is, and what holds it up."""
    found = await run.s.rollouts.get(await run.id("rollout", rollout), as_of=parse.moment(as_of) if as_of else None)
    run.out.record(found, ROLLOUT)


@verb(
    app,
    "cancel",
    mutates=True,
    examples="""
    strandline rollout cancel ro-3fa9
    """,
)
async def cancel(run: Run, rollout: Identifier) -> None:
    """Take up no further node, and open again the ones that are at work."""
    identifier = await run.id("rollout", rollout)
    reply = await run.s.rollouts.cancel(identifier, **run.call)
    run.out.one({"rollout_id": identifier, **reply.model_dump(exclude={"id"}, exclude_none=True)}, shapes.fields("rollout_id", "seq"))
