"""Colours and consoles: colour only where a person looks on, never when ``NO_COLOR`` is set."""

from __future__ import annotations

import sys
from typing import Final, TextIO

from rich.console import Console

STATES: Final = {
    **dict.fromkeys(("READY", "RUNNING", "OK", "ready", "healthy", "ok", "live"), "green"),
    **dict.fromkeys(("PENDING", "NOT_READY", "PARTIALLY_READY", "PAUSED", "UNKNOWN", "cordoned", "draining", "warn", "CREATING"), "yellow"),
    **dict.fromkeys(("FAILED", "STALE", "MISSING", "offline", "evicted", "broken", "reject", "delete_only", "missing"), "red"),
    **dict.fromkeys(("DEAD", "STOPPED", "DELETING", "DELETED", "GONE"), "bright_black"),
}
"""State word → colour, the same for every noun."""


def console(stream: TextIO) -> Console:
    """A console that writes to ``stream``, wraps nothing and guesses nothing. Rich itself honours ``NO_COLOR`` and asks ``isatty``."""
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False)


def screen(stream: TextIO) -> Console:
    """A console for what is drawn again and again: it must know how many lines it has drawn."""
    return Console(file=stream, highlight=False, emoji=False)


def counted(number: int, noun: str) -> str:
    """``1 node``, ``2 sandboxes``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('x') else 's'}"


def interactive(stream: TextIO) -> bool:
    """Whether a person looks at ``stream``."""
    return stream.isatty()


def out(text: str) -> None:
    """A line of data, on stdout, at once: whoever follows us reads it now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def err(text: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
