"""``strandline sandbox logs``: what the workload printed."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Final

import typer
from rich.text import Text

from domain.sandboxes.loglines import Stream
from strandline.cli import args, parse
from strandline.cli.columns import Column, Shape
from strandline.cli.errors import UsageProblem
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.output import Format
from strandline.cli.style import console, interactive, out
from strandline.cli.verb import Run, verb
from strandline.client.logs import LogLine

LINE: Final = Shape("seq", (Column("SEQ", "seq"), Column("TIME", "time"), Column("STREAM", "stream"), Column("TEXT", "text")))
COLOURS: Final = {"stderr": "red", "error": "red", "runtime": "bright_black"}


@verb(
    app,
    "logs",
    examples="""
    strandline sandbox logs web -n 100
    strandline sandbox logs web -f --since 10m
    strandline sandbox logs web --stream stderr --grep 'error|warn' -o jsonl
    """,
)
async def logs(
    run: Run,
    sandbox: args.Sandbox,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox is dead.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Only the last so many lines of what is kept.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Since an instant, or a time ago (10m).", show_default=False)
    ] = None,
    stream: Annotated[Stream | None, typer.Option("--stream", help="Only this one.", show_default=False)] = None,
    grep: Annotated[str | None, typer.Option("--grep", metavar="REGEX", help="Only lines that match.", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="As it was written: lines of structured logging whole.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="With the time of each line.")] = False,
) -> None:
    """Print what a sandbox wrote: all its streams, in order, on stdout."""
    identifier = await run.id("sandbox", sandbox)
    moment = parse.instant(since) if since else None
    matching = _pattern(grep)
    read, following = (partial(source, identifier, stream=stream, since=moment, raw=raw) for source in (run.s.logs.read, run.s.logs.follow))
    if tail is None:
        lines = _matching((following if follow else read)(), matching)
    else:
        kept = await _last(_matching(read(), matching), tail)
        seq = kept[-1].seq if kept else 0
        more = following(after=seq) if follow else None
        lines = _joined(kept, _matching(more, matching) if more else None)
    if run.out.format in {Format.TABLE, Format.WIDE} and not run.out.names:
        async for line in lines:
            _show(line, timestamps=timestamps)
        return
    if follow and run.out.format in {Format.JSON, Format.YAML}:
        run.out.format = Format.JSONL
    await run.out.rows(lines, LINE)


def _pattern(text: str | None) -> re.Pattern[str]:
    try:
        return re.compile(text or "")
    except re.error as error:
        raise UsageProblem(f"not a regular expression: {text!r} ({error})") from None


async def _matching(lines: AsyncIterator[LogLine], pattern: re.Pattern[str]) -> AsyncIterator[LogLine]:
    async for line in lines:
        if pattern.search(line.text):
            yield line


async def _last(lines: AsyncIterator[LogLine], count: int) -> deque[LogLine]:
    kept: deque[LogLine] = deque(maxlen=count)
    async for line in lines:
        kept.append(line)
    return kept


async def _joined(kept: deque[LogLine], more: AsyncIterator[LogLine] | None) -> AsyncIterator[LogLine]:
    for line in kept:
        yield line
    if more is not None:
        async for line in more:
            yield line


def _show(line: LogLine, *, timestamps: bool) -> None:
    text = f"{line.time.isoformat(timespec='milliseconds')} {line.text}" if timestamps else line.text
    if interactive(sys.stdout) and line.stream in COLOURS:
        console(sys.stdout).print(Text(text, COLOURS[line.stream]))
    else:
        out(text)
