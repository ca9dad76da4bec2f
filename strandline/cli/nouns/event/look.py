"""``strandline event list, tail, verify``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from domain.kernel.errors import Refused
from strandline.cli import audit, shapes
from strandline.cli.columns import Shape
from strandline.cli.nouns.event.group import Id, Since, Types, Until, app, position
from strandline.cli.output import Format
from strandline.cli.style import console, interactive
from strandline.cli.verb import Run, verb
from strandline.client.items import LogEvent


@verb(
    app,
    "list",
    aliases=("ls",),
    examples="""
    strandline event list --since 1h
    strandline event list --type 'sandbox.*' -n 20 -o wide
    strandline event list --id sb-aaaaaaaaaaaaaaaaaaaa -o jsonl
    """,
)
async def list_(
    run: Run,
    since: Since = None,
    until: Until = None,
    types: Types = None,
    identifier: Id = None,
    last: Annotated[int | None, typer.Option("--last", "-n", min=1, help="Only the last so many.", show_default=False)] = None,
) -> None:
    """Events of the project, oldest first."""
    after = await position(run, since) or 0
    found = run.s.events.read(after=after, until=await position(run, until), type=types or (), id=identifier)
    if last is None:
        await run.out.rows(found, shapes.EVENT)
    else:
        run.out.all(([event async for event in found])[-last:], shapes.EVENT)


@verb(
    app,
    "tail",
    aliases=("follow",),
    examples="""
    strandline event tail
    strandline event tail --since 10m --type 'sandbox.*'
    strandline event tail -o jsonl | jq .type
    """,
)
async def tail(
    run: Run,
    since: Since = None,
    types: Types = None,
    identifier: Id = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many.", show_default=False)] = None,
) -> None:
    """Print events as they happen, from now on or from --since on, until interrupted."""
    after = await position(run, since)
    if run.out.format in {Format.TABLE, Format.WIDE} and not run.out.names:
        async for event in _some(run, after, types, identifier, count):
            _show(event)
        return
    if run.out.format in {Format.JSON, Format.YAML, Format.TABLE, Format.WIDE}:
        run.out.format = Format.JSONL
    await run.out.rows(_some(run, after, types, identifier, count), shapes.EVENT)


async def _some(run: Run, after: int | None, types: list[str] | None, identifier: str | None, count: int | None) -> AsyncIterator[LogEvent]:
    left = count
    async for event in run.s.events.follow(after=after, type=types or (), id=identifier):
        yield event
        left = None if left is None else left - 1
        if left == 0:
            return


def _show(event: LogEvent) -> None:
    """One line; cut to the terminal's width where there is one."""
    data = json.dumps(event.data, ensure_ascii=False, separators=(",", ":")) if event.data else ""
    at = event.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    line = Text.assemble(
        f"{event.seq:>7}  ", (f"{at}  ", "bright_black"), (f"{event.type:<28}  ", "cyan"), f"{event.id}  ", (data, "bright_black")
    )
    line.rstrip()
    screen = console(sys.stdout)
    if interactive(sys.stdout):
        line.truncate(screen.width, overflow="ellipsis")
    screen.print(line)
    sys.stdout.flush()


@verb(
    app,
    "verify",
    examples="""
    strandline event verify
    strandline event verify --id sb-aaaaaaaaaaaaaaaaaaaa
    strandline event verify --file audit.jsonl
    """,
)
async def verify(
    run: Run,
    identifier: Id = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Check an export against its manifest instead.", show_default=False),
    ] = None,
) -> None:
    """Check that nothing in the log was altered, reordered or removed; exit code 1 when something was."""
    if file is not None:
        run.out.one(await asyncio.to_thread(audit.check, file), shapes.fields("file", "count", "first_seq", "last_seq", "sha256", "ok"))
        return
    found = await run.s.events.verify(id=identifier)
    run.out.record(found, Shape("ok", ()))
    if found.faults or not found.intact:
        raise Refused("event.altered", "the log is not what was written", details=found.raw())
