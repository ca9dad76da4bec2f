"""Tables as people of the shell like them: aligned columns, no frames, never a cut id, the same text with and without a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from strandline.cli.columns import Column, Row
from strandline.cli.style import STATES, console

GAP = "  "
LEAST = 8
"""Cells that a flexible column keeps however narrow the terminal is."""


def print_table(stream: TextIO, columns: Sequence[Column], rows: Sequence[Row], *, headers: bool = True) -> None:
    """Print rows under headers."""
    for line in render(columns, rows, headers=headers, width=console(stream).width if stream.isatty() else None):
        console(stream).print(line)


def render(columns: Sequence[Column], rows: Sequence[Row], *, headers: bool, width: int | None) -> list[Text]:
    """The lines. ``width`` is what the terminal has; None means as wide as it takes."""
    cells = [[column.text(row) for column in columns] for row in rows]
    head = [column.header for column in columns] if headers else [""] * len(columns)
    widths = [max([cell_len(head[i]), *(cell_len(line[i]) for line in cells)]) for i in range(len(columns))]
    if width is not None:
        _squeeze(columns, widths, width)
    lines = [_line(columns, head, widths, style="bold")] if headers else []
    return lines + [_line(columns, line, widths) for line in cells]


def _squeeze(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Take cells from the widest flexible column until the table fits, or nothing can give any more."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        flexible = [i for i, column in enumerate(columns) if column.flex and widths[i] > LEAST]
        if not flexible:
            return
        widths[max(flexible, key=lambda i: widths[i])] -= 1


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], style: str = "") -> Text:
    line = Text(style=style)
    for i, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        last = i == len(columns) - 1
        line.append(_fit(cell, widths[i], right=column.right, pad=not last or column.right), STATES.get(cell, "") if column.state else "")
        if not last:
            line.append(GAP)
    line.rstrip()
    return line


def _fit(cell: str, width: int, *, right: bool, pad: bool) -> str:
    length = cell_len(cell)
    if length > width:
        return set_cell_size(cell, width - 1) + "…"
    if right:
        return " " * (width - length) + cell
    return cell + " " * (width - length) if pad else cell
