"""What the demo prints: numbered steps, facts below them, the subject at the right. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

COMPAT_STYLES = {"OK": "green", "STALE": "red", "UNKNOWN": "yellow", "MISSING": "dim"}


class Screen:
    """Everything goes to stdout; a demo's output is its data."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._step = 0
        self._began = time.monotonic()

    def step(self, what: str, subject: str = "") -> None:
        """The next step, with the subject that it uses."""
        self._step += 1
        line = Text.assemble((f"\n{self._step:>2} ", "bold cyan"), (what, "bold"))
        if subject:
            line.append(f"  {subject}", "dim")
        self.console.print(line, soft_wrap=True)

    def fact(self, text: str, style: str = "") -> None:
        """What came of it."""
        self.console.print(Text(f"   {text}", style), soft_wrap=True)

    def lacks(self, text: str) -> None:
        """What is not possible here, and what is shown instead."""
        self.console.print(Text(f"   note: {text}", "yellow"), soft_wrap=True)

    def facts(self, **values: Any) -> None:
        """Several facts on one line."""
        self.fact("  ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))

    def progress(self) -> Progress:
        """Bars, one per phase."""
        return Progress(
            TextColumn("  "),
            SpinnerColumn(),
            TextColumn("{task.description:<18}"),
            BarColumn(30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=self.console,
        )

    def matrix(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The compat matrix."""
        widths = (30, 10, 10, 9, 19, 19)
        titles = ("template", "overall", "node", "compat", "bound guest image", "current")
        self.fact("".join(title.ljust(width) for title, width in zip(titles, widths, strict=True)), "bold")
        for row in rows:
            for cell in row["nodes"]:
                bound, current = cell["bound"] or {}, cell["current"] or {}
                words = (
                    row["template_id"],
                    row["overall"],
                    cell["node_id"],
                    cell["compat"],
                    bound.get("guest_image"),
                    current.get("guest_image"),
                )
                line = "".join(str(word or "-").ljust(width) for word, width in zip(words, widths, strict=True))
                self.fact(line, COMPAT_STYLES.get(cell["compat"], ""))

    def done(self) -> None:
        """The last line."""
        self.console.print(Text(f"\ndone in {time.monotonic() - self._began:.1f} s", "bold green"))
