"""``strandline sandbox pause, resume, stop, delete, snapshot, rollback, set-ttl, wait-port, abandon``: what is done to sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import do_all, settled, split, targets
from strandline.cli.columns import Column, Shape, remaining
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.nouns.snapshot import take
from strandline.cli.progress import follow_job
from strandline.cli.resolve import GONE
from strandline.cli.verb import Run, verb
from strandline.client import Call

STATE = shapes.fields("sandbox_id", "state")
PORT = shapes.fields("sandbox_id", "port", "status", "address", "bound")
TTL = Shape("sandbox_id", (Column("SANDBOX ID", "sandbox_id"), Column("ENDS", "ends_at", remaining)))


async def _each(
    run: Run, words: Sequence[str] | None, send: Callable[..., Awaitable[Any]], *, every: bool, yes: bool, what: str, **options: Any
) -> None:
    """One lifecycle command for the sandboxes that are meant."""
    names, filters = split(words, every=every)

    async def alive() -> AsyncIterator[str]:
        async for sandbox in run.s.sandboxes.list(**parse.filters(filters)):
            if sandbox.state not in GONE:
                yield sandbox.sandbox_id

    async def act(identifier: str, call: Call) -> dict[str, Any]:
        reply = settled(run, await send(identifier, **options, **call), f"sandbox {identifier}", sandbox_id=identifier)
        return {"sandbox_id": identifier, **reply.model_dump(exclude={"id"}, exclude_none=True)}

    chosen = await targets(run, "sandbox", names, every=alive() if every else None, yes=yes, what=what)
    await do_all(run, chosen, act, STATE)


@verb(
    app,
    "pause",
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox pause web
    """,
)
async def pause(run: Run, sandboxes: args.Sandboxes = None) -> None:
    """Freeze every process; memory stays, and the time to live stands still."""
    await _each(run, sandboxes, run.s.sandboxes.pause, every=False, yes=True, what="Pause")


@verb(
    app,
    "resume",
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox resume web
    """,
)
async def resume(run: Run, sandboxes: args.Sandboxes = None) -> None:
    """Let paused sandboxes go on."""
    await _each(run, sandboxes, run.s.sandboxes.resume, every=False, yes=True, what="Resume")


@verb(
    app,
    "stop",
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox stop web --grace 30s
    strandline sandbox stop --all node_id=n1 --yes
    """,
)
async def stop(
    run: Run,
    sandboxes: args.Sandboxes = None,
    grace: Annotated[
        str | None, typer.Option("--grace", metavar="DURATION", help="Between SIGTERM and SIGKILL.", show_default=False)
    ] = None,
    every: args.All = False,
    yes: args.Yes = False,
) -> None:
    """Ask sandboxes to end, then end them."""
    seconds = parse.seconds(grace) if grace else None
    await _each(run, sandboxes, run.s.sandboxes.stop, every=every, yes=yes, what="Stop", grace_s=seconds)


@verb(
    app,
    "delete",
    aliases=("rm", "kill"),
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox delete web
    strandline sandbox delete --all template_id=tpl-3fa91c0d2b7e4a5566778899 --yes
    """,
)
async def delete(run: Run, sandboxes: args.Sandboxes = None, every: args.All = False, yes: args.Yes = False) -> None:
    """End sandboxes at once and remove them; possible in every state."""
    await _each(run, sandboxes, run.s.sandboxes.delete, every=every, yes=yes, what="Delete")


@verb(
    app,
    "snapshot",
    mutates=True,
    waits=120,
    examples="""
    strandline sandbox snapshot web --name before-upgrade
    """,
)
async def snapshot(
    run: Run, sandbox: args.Sandbox, name: Annotated[str | None, typer.Option("--name", help="A name for it.", show_default=False)] = None
) -> None:
    """Snapshot a sandbox. It goes on afterwards."""
    await take(run, sandbox, name)


@verb(
    app,
    "rollback",
    mutates=True,
    waits=120,
    examples="""
    strandline sandbox rollback web before-upgrade
    """,
)
async def rollback(run: Run, sandbox: args.Sandbox, snapshot: args.Snapshot) -> None:
    """Put a sandbox back to one of its snapshots. Open connections break."""
    identifier, to = await run.id("sandbox", sandbox), await run.id("snapshot", snapshot)
    reply = await run.s.sandboxes.rollback(identifier, to, **run.call | Call(wait_s=0))
    if run.wait:
        await follow_job(run, reply.job_id)
    row = {"sandbox_id": identifier, **reply.model_dump(exclude={"id", "settled"}, exclude_none=True)}
    run.out.one(row, shapes.fields("sandbox_id", "generation", "job_id"))


@verb(
    app,
    "set-ttl",
    mutates=True,
    examples="""
    strandline sandbox set-ttl web 2h
    strandline sandbox set-ttl web never
    """,
)
async def set_ttl(
    run: Run,
    sandbox: args.Sandbox,
    ttl: Annotated[str, typer.Argument(metavar="DURATION|never", help="Counted from now.", show_default=False)],
    kind: Annotated[
        Literal["absolute", "idle"] | None, typer.Option("--kind", help="Counted from now, or from the last use.", show_default=False)
    ] = None,
) -> None:
    """Give a sandbox a new time to live."""
    identifier = await run.id("sandbox", sandbox)
    reply = await run.s.sandboxes.set_ttl(identifier, parse.ttl(ttl), ttl_kind=kind, **run.call)
    run.out.one({"sandbox_id": identifier, **reply.model_dump(exclude={"id"})}, TTL)


@verb(
    app,
    "update-limits",
    mutates=True,
    waits=60,
    examples="""
    strandline sandbox update-limits web --memory 2G
    strandline sandbox update-limits web --cpu 0.5 --pids 200
    """,
)
async def update_limits(
    run: Run,
    sandbox: args.Sandbox,
    cpu: args.Cpu = None,
    memory: args.Memory = None,
    pids: Annotated[int | None, typer.Option("--pids", help="Processes.", show_default=False)] = None,
) -> None:
    """Give a running sandbox other limits; what is not named stays."""
    identifier = await run.id("sandbox", sandbox)
    memory_mb = parse.mebibytes(memory) if memory else None
    reply = await run.s.sandboxes.update_limits(identifier, cpu=cpu, memory_mb=memory_mb, pids=pids, **run.call)
    run.out.one(settled(run, reply, f"sandbox {identifier}", sandbox_id=identifier), STATE)


@verb(
    app,
    "wait-port",
    waits=60,
    examples="""
    strandline sandbox wait-port web 8080
    strandline sandbox wait-port web 8080 --timeout 5m
    """,
)
async def wait_port(
    run: Run,
    sandbox: args.Sandbox,
    port: Annotated[int, typer.Argument(metavar="PORT", help="One that it has declared.", min=1, max=65_535, show_default=False)],
) -> None:
    """Wait until something listens on a port of a sandbox."""
    identifier = await run.id("sandbox", sandbox)
    reply = await run.s.sandboxes.wait_port(identifier, port, **run.call)
    run.out.one(settled(run, reply, f"port {port} of {sandbox}", sandbox_id=identifier), PORT)


@verb(
    app,
    "abandon",
    mutates=True,
    examples="""
    strandline sandbox abandon sb-k3f2
    """,
)
async def abandon(run: Run, sandbox: args.Sandbox) -> None:
    """Give up undoing a failed start that is blocked; the answer names what is left behind."""
    identifier = await run.id("sandbox", sandbox)
    reply = await run.s.sandboxes.abandon(identifier, **run.call)
    run.out.one(
        {"sandbox_id": identifier, **reply.model_dump(exclude={"id"}, exclude_none=True)}, shapes.fields("sandbox_id", "uncompensated")
    )
