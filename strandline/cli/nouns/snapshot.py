"""``strandline snapshot …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from typing import Annotated, Any

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import do_all, settled, targets
from strandline.cli.lineage import drawn
from strandline.cli.progress import follow_job
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch
from strandline.client import Call

app = typer.Typer(help="Memory and disk of a sandbox at one moment.", no_args_is_help=True)


async def take(run: Run, sandbox: str, name: str | None, replicate: bool = False) -> None:
    """Snapshot a sandbox; also ``strandline sandbox snapshot``."""
    made = await run.s.snapshots.create(await run.id("sandbox", sandbox), name=name, replicate=replicate, **run.call | Call(wait_s=0))
    if not run.wait:
        run.out.one(made, shapes.fields("snapshot_id", "job_id", "status"))
        return
    await follow_job(run, made.job_id)
    run.out.one(await run.s.snapshots.get(made.snapshot_id), shapes.SNAPSHOT)


@verb(
    app,
    "create",
    mutates=True,
    waits=120,
    examples="""
    strandline snapshot create sb-k3f2 --name before-upgrade
    """,
)
async def create(
    run: Run,
    sandbox: args.Sandbox,
    name: Annotated[str | None, typer.Option("--name", help="A name for it.", show_default=False)] = None,
    replicate: Annotated[bool, typer.Option("--replicate", help="Store it at once where every node can fetch it.")] = False,
) -> None:
    """Snapshot a sandbox. It goes on afterwards."""
    await take(run, sandbox, name, replicate)


@verb(
    app,
    "export",
    mutates=True,
    waits=600,
    examples="""
    strandline snapshot export before-upgrade
    """,
)
async def export(run: Run, snapshot: args.Snapshot) -> None:
    """Store a snapshot where every node can fetch it, so that it outlives its node."""
    identifier = await run.id("snapshot", snapshot)
    reply = settled(run, await run.s.snapshots.export(identifier, **run.call), f"snapshot {identifier}", snapshot_id=identifier)
    run.out.one(reply, shapes.fields("snapshot_id", "status", "settled"))


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline snapshot list
    strandline snapshot list origin_sandbox_id=sb-aaaaaaaaaaaaaaaaaaaa -o json
    """,
)
async def list_(run: Run, as_of: args.AsOf = None) -> None:
    """Snapshots."""

    def read() -> AsyncIterator[Any]:
        return run.s.snapshots.list(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, shapes.SNAPSHOT, ("snapshot",), read)
    else:
        await run.out.rows(read(), shapes.SNAPSHOT)


@verb(
    app,
    "tree",
    lists=True,
    watches=True,
    examples="""
    strandline snapshot tree
    strandline snapshot tree --of tpl-1f2e3d4c5b6a798081726354
    """,
)
async def tree(
    run: Run,
    of: Annotated[str | None, typer.Option("--of", help="Only what came of this one, by its id.", show_default=False)] = None,
    as_of: args.AsOf = None,
) -> None:
    """Who came from whom: templates, sandboxes and snapshots, each under what it came from."""

    async def read() -> AsyncIterator[Any]:
        found = [item async for item in run.s.snapshots.lineage(as_of=parse.moment(as_of) if as_of else None, **run.filters)]
        for row in islice(drawn(found, of), run.limit):
            yield row

    if run.watch:
        await watch(run, shapes.LINEAGE, ("template", "sandbox", "snapshot"), read)
    else:
        await run.out.rows(read(), shapes.LINEAGE)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline snapshot get before-upgrade
    """,
)
async def get(run: Run, snapshot: args.Snapshot, as_of: args.AsOf = None) -> None:
    """One snapshot with all its fields."""
    moment = parse.moment(as_of) if as_of else None
    run.out.record(await run.s.snapshots.get(await run.id("snapshot", snapshot), as_of=moment), shapes.SNAPSHOT)


@verb(
    app,
    "delete",
    aliases=("rm",),
    mutates=True,
    waits=60,
    examples="""
    strandline snapshot delete before-upgrade
    """,
)
async def delete(run: Run, snapshots: args.Snapshots) -> None:
    """Delete snapshots: hidden at once, removed when nothing refers to them."""

    async def act(identifier: str, call: Call) -> dict[str, Any]:
        reply = settled(run, await run.s.snapshots.delete(identifier, **call), f"snapshot {identifier}", snapshot_id=identifier)
        return {"snapshot_id": identifier, **reply.model_dump(exclude={"id"}, exclude_none=True)}

    chosen = await targets(run, "snapshot", snapshots, every=None, yes=True, what="Delete")
    await do_all(run, chosen, act, shapes.fields("snapshot_id", "settled"))
