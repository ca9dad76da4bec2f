"""``strandline sandbox list, get, describe, wait, events, steps, top``: looking at sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from domain.kernel.errors import Refused
from strandline.cli import args, parse, shapes
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.output import Format
from strandline.cli.resolve import GONE
from strandline.cli.style import out
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch

EVERY_S = 2.0
STATES = ("PENDING", "NOT_READY", "RUNNING", "PAUSED", "STOPPED", "DEAD")


@verb(
    app,
    "list",
    aliases=("ls", "ps"),
    lists=True,
    watches=True,
    examples="""
    strandline sandbox list
    strandline sandbox list state=RUNNING node_id=n1 -o wide
    strandline sandbox list --all --columns sandbox_id,state,reason -o csv
    strandline sandbox list --watch
    """,
)
async def list_(
    run: Run, every: Annotated[bool, typer.Option("--all", "-a", help="Dead ones too.")] = False, as_of: args.AsOf = None
) -> None:
    """Sandboxes that live; all of them with --all or a state= filter."""
    dead_too = every or "state" in run.filters

    async def read() -> AsyncIterator[Any]:
        left = run.limit
        async for sandbox in run.s.sandboxes.list(as_of=parse.moment(as_of) if as_of else None, **run.filters):
            if left == 0:
                return
            if dead_too or sandbox.state not in GONE:
                left = None if left is None else left - 1
                yield sandbox

    if run.watch:
        await watch(run, shapes.SANDBOX, ("sandbox",), read)
    else:
        await run.out.rows(read(), shapes.SANDBOX)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline sandbox get web
    strandline sandbox get sb-k3f2 -o json
    strandline sandbox get web --columns address,ports
    """,
)
async def get(run: Run, sandbox: args.Sandbox, as_of: args.AsOf = None) -> None:
    """One sandbox with all its fields."""
    moment = parse.moment(as_of) if as_of else None
    run.out.record(await run.s.sandboxes.get(await run.id("sandbox", sandbox), as_of=moment), shapes.SANDBOX)


@verb(
    app,
    "describe",
    examples="""
    strandline sandbox describe web
    """,
)
async def describe(run: Run, sandbox: args.Sandbox) -> None:
    """One sandbox with its snapshots and its latest events."""
    identifier = await run.id("sandbox", sandbox)
    found = await run.s.sandboxes.get(identifier)
    events = [event async for event in run.s.events.read(id=identifier)]
    snapshots = [snapshot async for snapshot in run.s.snapshots.list(origin_sandbox_id=identifier)]
    if run.out.format not in {Format.TABLE, Format.WIDE}:
        parts = {"snapshots": [s.raw() for s in snapshots], "events": [e.raw() for e in events]}
        run.out.one({**found.raw(), **parts}, shapes.SANDBOX)
        return
    run.out.record(found, shapes.SANDBOX)
    if snapshots:
        out("\nSnapshots")
        run.out.all(snapshots, shapes.SNAPSHOT)
    out("\nEvents")
    run.out.all(events[-20:], shapes.EVENT)


@verb(
    app,
    "wait",
    waits=60,
    examples="""
    strandline sandbox wait web
    strandline sandbox wait web --for state=PAUSED --timeout 2m
    """,
)
async def wait(
    run: Run,
    sandbox: args.Sandbox,
    condition: Annotated[str, typer.Option("--for", metavar="STATE", help="STATE or state=STATE; several with commas.")] = "RUNNING",
) -> None:
    """Wait until a sandbox is in a state. One that dies first is a failure."""
    wanted = [state.upper() for state in condition.removeprefix("state=").split(",")]
    unknown = sorted(set(wanted) - set(STATES))
    if unknown:
        raise typer.BadParameter(f"no state {unknown[0]!r}; there are {', '.join(STATES)}", param_hint="--for")
    identifier = await run.id("sandbox", sandbox)
    found = await run.s.sandboxes.wait(identifier, *wanted, timeout=run.timeout_s)
    if found.state not in wanted:
        raise Refused(
            "sandbox.died",
            f"sandbox {identifier} is DEAD: {found.reason or 'no reason given'}",
            details={"sandbox_id": identifier, "reason": found.reason},
        )
    run.out.one(found, shapes.SANDBOX)


@verb(
    app,
    "events",
    examples="""
    strandline sandbox events web
    strandline sandbox events web -o jsonl
    """,
)
async def events(run: Run, sandbox: args.Sandbox) -> None:
    """What happened to a sandbox."""
    await run.out.rows(run.s.events.read(id=await run.id("sandbox", sandbox)), shapes.EVENT)


@verb(
    app,
    "steps",
    examples="""
    strandline sandbox steps web
    strandline sandbox steps sb-k3f2 -o json
    """,
)
async def steps(run: Run, sandbox: args.Sandbox) -> None:
    """What was done to start a sandbox, and undone; `sandbox abandon` gives up what cannot be undone."""
    run.out.all(await run.s.sandboxes.steps(await run.id("sandbox", sandbox)), shapes.STEP)


@verb(
    app,
    "top",
    aliases=("usage",),
    lists=True,
    watches=True,
    examples="""
    strandline sandbox top
    strandline sandbox top node_id=n1 --watch
    """,
)
async def top(run: Run, every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False) -> None:
    """What sandboxes use and were promised, how long they ran, and how many commands they were given. Watched, it is read every 2 s."""
    filters = run.filters if every else {"ended_at": None, **run.filters}

    def read() -> AsyncIterator[Any]:
        return run.s.sandboxes.usage(limit=run.limit, **filters)

    if run.watch:
        await watch(run, shapes.USAGE, ("sandbox",), read, EVERY_S)
    else:
        await run.out.rows(read(), shapes.USAGE)
