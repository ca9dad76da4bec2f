"""``strandline node …``"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.resolve import GONE
from strandline.cli.verb import Run, verb
from strandline.cli.watching import until, watch
from strandline.client import Call

app = typer.Typer(help="Machines that run sandboxes.", no_args_is_help=True)

DONE = shapes.fields("node_id", "seq")
SWEPT = shapes.fields("node_id", "dry_run", "removed", "failed", "kept")


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline node list
    strandline node list status=ready -o wide
    """,
)
async def list_(run: Run, as_of: args.AsOf = None) -> None:
    """Nodes, what they have and what is used."""

    def read() -> AsyncIterator[Any]:
        return run.s.nodes.list(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.NODE, ("node", "sandbox"), read)
    else:
        await run.out.rows(read(), shapes.NODE)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline node get n1 -o yaml
    """,
)
async def get(run: Run, node: args.Node) -> None:
    """One node with all its fields."""
    run.out.record(await run.s.nodes.get(await run.id("node", node)), shapes.NODE)


@verb(
    app,
    "enroll",
    mutates=True,
    waits=60,
    patient=False,
    examples="""
    strandline node enroll n2
    """,
)
async def enroll(run: Run, node: Annotated[str, typer.Argument(metavar="NODE", help="The id it shall have.", show_default=False)]) -> None:
    """Make a machine known, so that its agent may join. --wait: until it has."""

    async def there() -> bool:
        return (await run.s.nodes.get(node)).status not in {"offline", "evicted"}

    await _on(run, node, run.s.nodes.enroll, there)


@verb(
    app,
    "evict",
    mutates=True,
    waits=60,
    patient=False,
    examples="""
    strandline node evict n2
    """,
)
async def evict(run: Run, node: args.Node) -> None:
    """Disconnect a node and refuse it, until it is enrolled again. --wait: until it is shown as evicted."""
    identifier = await run.id("node", node)

    async def evicted() -> bool:
        return (await run.s.nodes.get(identifier)).status == "evicted"

    await _on(run, identifier, run.s.nodes.evict, evicted)


@verb(
    app,
    "cordon",
    mutates=True,
    examples="""
    strandline node cordon n1
    """,
)
async def cordon(run: Run, node: args.Node) -> None:
    """No new sandboxes there."""
    await _on(run, await run.id("node", node), run.s.nodes.cordon)


@verb(
    app,
    "uncordon",
    mutates=True,
    examples="""
    strandline node uncordon n1
    """,
)
async def uncordon(run: Run, node: args.Node) -> None:
    """New sandboxes again."""
    await _on(run, await run.id("node", node), run.s.nodes.uncordon)


@verb(
    app,
    "drain",
    mutates=True,
    waits=600,
    patient=False,
    examples="""
    strandline node drain n1
    strandline node drain n1 --stop-after 1h --wait --timeout 2h
    """,
)
async def drain(
    run: Run,
    node: args.Node,
    stop_after: Annotated[
        str | None, typer.Option("--stop-after", metavar="DURATION", help="Then stop what is still there.", show_default=False)
    ] = None,
) -> None:
    """No new sandboxes there; those that it has end by themselves, or are stopped after a while. --wait: until the project has none."""
    seconds = None if stop_after is None else parse.seconds(stop_after)
    identifier = await run.id("node", node)

    async def empty() -> bool:
        return not [s async for s in run.s.sandboxes.list(node_id=identifier) if s.state not in GONE]

    await _on(run, identifier, partial(run.s.nodes.drain, stop_after_s=seconds), empty)


@verb(
    app,
    "sweep",
    mutates=True,
    waits=120,
    examples="""
    strandline node sweep n1 --dry-run
    strandline node sweep n1 -o json
    """,
)
async def sweep(
    run: Run, node: args.Node, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False
) -> None:
    """Take away rests of sandboxes that the log does not know there, and copies of deleted artifacts. Agents do it by themselves too."""
    reply = await run.s.nodes.sweep(await run.id("node", node), dry_run=dry_run, **run.call)
    run.out.one(reply, SWEPT)


@verb(
    app,
    "configure",
    mutates=True,
    examples="""
    strandline node configure n1 --label zone=a --label disk=ssd
    strandline node configure n1 --cpu-ratio 4 --memory-ratio 1.5
    """,
)
async def configure(
    run: Run,
    node: args.Node,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label; those that are not named go. Repeatable.", show_default=False),
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Take all labels away.")] = False,
    cpu_ratio: Annotated[
        float | None, typer.Option("--cpu-ratio", help="Promise so many times its cores; 0: without bound.", show_default=False)
    ] = None,
    memory_ratio: Annotated[
        float | None, typer.Option("--memory-ratio", help="Promise so many times its memory.", show_default=False)
    ] = None,
    sandboxes_ratio: Annotated[
        float | None, typer.Option("--sandboxes-ratio", help="Take so many times the sandboxes that it says.", show_default=False)
    ] = None,
) -> None:
    """Labels that sandboxes choose a node by, and how much may be promised on it. What runs there stays."""
    send = partial(
        run.s.nodes.configure,
        labels={} if no_labels else parse.pairs(label, "a label"),
        cpu_ratio=cpu_ratio,
        memory_ratio=memory_ratio,
        sandboxes_ratio=sandboxes_ratio,
    )
    await _on(run, await run.id("node", node), send)


async def _on(run: Run, node_id: str, send: Callable[..., Awaitable[Any]], so: Callable[[], Awaitable[bool]] | None = None) -> None:
    reply = await send(node_id, **run.call | Call(wait_s=0))
    if run.wait and so is not None:
        await until(run, so, ("node", "sandbox"), f"node {node_id}")
    run.out.one({"node_id": node_id, **reply.model_dump(exclude={"id"}, exclude_none=True)}, DONE)
