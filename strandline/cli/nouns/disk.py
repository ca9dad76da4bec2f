"""``strandline disk …``"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

import typer

from strandline.cli import args, parse, shapes
from strandline.cli.bulk import settled
from strandline.cli.columns import Column, Shape, age, fault, megabytes, size
from strandline.cli.errors import UsageProblem
from strandline.cli.verb import Run, verb
from strandline.cli.watching import watch
from strandline.client.items import Disk
from strandline.client.replies import DiskAccepted

app = typer.Typer(help="Storage that outlives sandboxes; one at a time has it.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="DISK", help="Its name.", show_default=False)]
Size = Annotated[str, typer.Option("--size", metavar="SIZE", help="How big, e.g. 512M or 10G.", show_default=False)]
Snapshot = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot's name.", show_default=False)]
DISK: Final = Shape(
    "disk_id",
    (
        Column("NAME", "disk_id"),
        Column("STATUS", "status", state=True),
        Column("SIZE", "size_mb", megabytes, right=True),
        Column("FILESYSTEM", "filesystem"),
        Column("NODE", "node_id"),
        Column("SANDBOX", "sandbox_id"),
        Column("MOUNTED FOR", "attached_to", wide=True),
        Column("EPOCH", "epoch", wide=True, right=True),
        Column("QUOTA", "quota", wide=True),
        Column("AGE", "created_at", age),
        Column("LAST ERROR", "last_error", fault, flex=True),
    ),
)
LEASE: Final = Shape(
    "lease_id",
    (
        Column("DISK", "disk"),
        Column("SANDBOX", "sandbox_id"),
        Column("STATUS", "status", state=True),
        Column("PATH", "mount_path", flex=True),
        Column("NODE", "node_id"),
        Column("EPOCH", "epoch", right=True),
        Column("AGE", "created_at", age),
        Column("LAST ERROR", "last_error", fault, flex=True),
        Column("ID", "lease_id", wide=True),
    ),
)
KEPT: Final = Shape(
    "name",
    (
        Column("NAME", "name"),
        Column("SIZE", "size_mb", megabytes, right=True),
        Column("TAKES", "size_bytes", size, right=True),
        Column("AGE", "created_at", age),
    ),
)
MADE: Final = shapes.fields("disk_id", "status", "node_id", "size_mb")


def _said(run: Run, reply: DiskAccepted) -> None:
    run.out.one(settled(run, reply, f"disk {reply.disk_id}", disk_id=reply.disk_id), MADE)


@verb(
    app,
    "create",
    mutates=True,
    waits=60,
    examples="""
    strandline disk create data --size 10G
    strandline disk create copy --size 10G --from data/before-upgrade
    """,
)
async def create(
    run: Run,
    disk: Name,
    size: Size,
    filesystem: Annotated[
        Literal["ext4", "xfs", "btrfs"] | None, typer.Option("--filesystem", help="What it is formatted with.", show_default=False)
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="On this node.", autocompletion=args.complete("node"), show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="DISK/SNAPSHOT", help="With what is in this snapshot.", show_default=False)
    ] = None,
) -> None:
    """Make a disk."""
    of = None if source is None else _source(source)
    _said(run, await run.s.disks.create(disk, parse.mebibytes(size), filesystem=filesystem, node=node, source=of, **run.call))


def _source(text: str) -> tuple[str, str]:
    disk, slash, snapshot = text.partition("/")
    if not (disk and slash and snapshot):
        raise UsageProblem(f"--from {text}: say DISK/SNAPSHOT")
    return disk, snapshot


@verb(
    app,
    "list",
    aliases=("ls",),
    lists=True,
    watches=True,
    examples="""
    strandline disk list
    strandline disk list node_id=n1 -o wide
    """,
)
async def list_(run: Run, as_of: args.AsOf = None) -> None:
    """Disks."""

    def read() -> AsyncIterator[Any]:
        return run.s.disks.list(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, DISK, ("disk",), read)
    else:
        await run.out.rows(read(), DISK)


@verb(
    app,
    "get",
    aliases=("show",),
    examples="""
    strandline disk get data -o json
    """,
)
async def get(run: Run, disk: Name, as_of: args.AsOf = None) -> None:
    """One disk with all its fields."""
    run.out.record(await run.s.disks.get(disk, as_of=parse.moment(as_of) if as_of else None), DISK)


@verb(
    app,
    "grow",
    mutates=True,
    waits=60,
    examples="""
    strandline disk grow data --size 20G
    """,
)
async def grow(run: Run, disk: Name, size: Size) -> None:
    """Make a disk bigger, also while a sandbox uses it."""
    _said(run, await run.s.disks.grow(disk, parse.mebibytes(size), **run.call))


@verb(
    app,
    "snapshot",
    mutates=True,
    waits=120,
    examples="""
    strandline disk snapshot data before-upgrade
    """,
)
async def snapshot(run: Run, disk: Name, snapshot: Snapshot) -> None:
    """Keep a disk as it is now, also while a sandbox uses it."""
    _said(run, await run.s.disks.snapshot(disk, snapshot, **run.call))


@verb(
    app,
    "snapshots",
    examples="""
    strandline disk snapshots data
    """,
)
async def snapshots(run: Run, disk: Name) -> None:
    """What is kept of a disk."""
    found: Disk = await run.s.disks.get(disk)
    run.out.all(found.snapshots, KEPT)


@verb(
    app,
    "delete-snapshot",
    mutates=True,
    waits=60,
    examples="""
    strandline disk delete-snapshot data before-upgrade
    """,
)
async def delete_snapshot(run: Run, disk: Name, snapshot: Snapshot) -> None:
    """Let a snapshot of a disk go."""
    _said(run, await run.s.disks.delete_snapshot(disk, snapshot, **run.call))


@verb(
    app,
    "delete",
    aliases=("rm",),
    mutates=True,
    waits=60,
    examples="""
    strandline disk delete data
    """,
)
async def delete(run: Run, disk: Name) -> None:
    """Remove a disk with everything on it, and its snapshots. Not while a sandbox has it."""
    _said(run, await run.s.disks.delete(disk, **run.call))


@verb(
    app,
    "leases",
    lists=True,
    watches=True,
    examples="""
    strandline disk leases disk=data
    strandline disk leases status=BOUND --watch
    """,
)
async def leases(run: Run, as_of: args.AsOf = None) -> None:
    """Who has, waits for, or had which disk."""

    def read() -> AsyncIterator[Any]:
        return run.s.disks.leases(as_of=parse.moment(as_of) if as_of else None, limit=run.limit, **run.filters)

    if run.watch:
        await watch(run, LEASE, ("disk-lease",), read)
    else:
        await run.out.rows(read(), LEASE)


@verb(
    app,
    "release",
    mutates=True,
    waits=60,
    examples="""
    strandline disk release data --force
    """,
)
async def release(
    run: Run, disk: Name, force: Annotated[bool, typer.Option("--force", help="Delete the sandbox that has it.")] = False
) -> None:
    """End the lease of a disk. It is mounted again only when the old mount is known to be gone."""
    reply = settled(run, await run.s.disks.release(disk, force=force or None, **run.call), f"disk {disk}", disk_id=disk)
    run.out.one(reply, shapes.fields("disk_id", "sandbox_id"))
