"""``--watch``: a list that goes on. Redrawn where a person looks on; one JSON line per change where a program reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from rich.live import Live
from rich.text import Text

from strandline.cli.columns import Row, Shape
from strandline.cli.output import to_row
from strandline.cli.style import interactive, out, screen
from strandline.cli.table import render
from strandline.cli.verb import Run
from strandline.client.call import timed_out

Read = Callable[[], AsyncIterator[Any]]


async def watch(run: Run, shape: Shape, kinds: tuple[str, ...], read: Read, every_s: float | None = None) -> None:
    """Show what ``read`` gives now and after every change of those kinds of aggregates, until interrupted.

    ``every_s``: instead of after changes every so many seconds, for what changes without an event.
    """
    show = _draw if interactive(sys.stdout) and run.out.format in {"table", "wide"} else _lines
    async with contextlib.aclosing(run.s.events.changes(*kinds) if every_s is None else _ticks(every_s)) as moves:
        await show(run, shape, read, moves)


async def _ticks(every_s: float) -> AsyncGenerator[int, None]:
    while True:
        yield 0
        await asyncio.sleep(every_s)


async def until(run: Run, so: Callable[[], Awaitable[bool]], kinds: tuple[str, ...], what: str) -> None:
    """Look now and after every change of those kinds of aggregates until it is so. Raises ``wait.timeout`` after ``--timeout``."""
    try:
        async with asyncio.timeout(run.timeout_s), contextlib.aclosing(run.s.events.changes(*kinds)) as moves:
            async for _ in moves:
                if await so():
                    return
    except TimeoutError:
        raise timed_out(what, run.timeout_s) from None


async def _draw(run: Run, shape: Shape, read: Read, moves: AsyncIterator[int]) -> None:
    drawn = screen(sys.stdout)
    with Live(console=drawn, auto_refresh=False, vertical_overflow="crop") as live:
        async for _ in moves:
            rows = [to_row(item) async for item in read()]
            lines = render(run.out.columns(shape, rows[:1]), rows, headers=run.out.headers, width=drawn.width)
            live.update(Text("\n").join(lines[: max(drawn.height - 1, 1)]), refresh=True)


async def _lines(_run: Run, shape: Shape, read: Read, moves: AsyncIterator[int]) -> None:
    known: dict[str, Row] = {}
    async for _ in moves:
        rows = {str(row.get(shape.key)): row async for row in _rows(read)}
        for key, row in rows.items():
            if key not in known:
                _say("added", row)
            elif known[key] != row:
                _say("changed", row)
        for key in known.keys() - rows.keys():
            _say("removed", known[key])
        known = rows


async def _rows(read: Read) -> AsyncIterator[Row]:
    async for item in read():
        yield to_row(item)


def _say(change: str, row: Row) -> None:
    out(json.dumps({"change": change, **row}, ensure_ascii=False, default=str))
