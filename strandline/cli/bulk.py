"""One command for several things: which ones, is that meant, and what became of each."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Any

import typer

from domain.kernel.errors import Refused
from domain.kernel.ids import derived
from strandline.cli.columns import Shape
from strandline.cli.errors import UsageProblem, print_error
from strandline.cli.exitcodes import exit_code
from strandline.cli.output import Format
from strandline.cli.style import counted, interactive
from strandline.cli.verb import Run
from strandline.client import Call

Act = Callable[[str, Call], Awaitable[dict[str, Any]]]


async def targets(run: Run, noun: str, named: Sequence[str] | None, *, every: AsyncIterable[str] | None, yes: bool, what: str) -> list[str]:
    """The ids that are meant: those named, or with ``--all`` those that ``every`` gives, once somebody has agreed.

    ``named`` may hold ``field=value`` filters beside ``--all``; the caller has applied them. Never asks without a terminal.
    """
    if every is None:
        if not named:
            raise UsageProblem(f"which {noun}? name one, or --all", f"strandline {noun} list")
        return [await run.id(noun, text) for text in named]
    found = [identifier async for identifier in every]
    if found and not yes:
        _agree(f"{what} {counted(len(found), noun)}")
    return found


def split(words: Sequence[str] | None, *, every: bool) -> tuple[list[str], list[str]]:
    """Names and filters of a bulk command. Raises ``UsageProblem`` when both or the wrong ones are given."""
    names = [word for word in words or () if "=" not in word]
    filters = [word for word in words or () if "=" in word]
    if every and names:
        raise UsageProblem("--all takes filters (field=value), not names")
    if filters and not every:
        raise UsageProblem("filters need --all", "several things at once are only done with --all")
    return names, filters


def _agree(question: str) -> None:
    if not (interactive(sys.stdin) and interactive(sys.stderr)):
        raise UsageProblem(f"{question.lower()}: --all needs --yes where nobody can be asked")
    if not typer.confirm(f"{question}?", err=True):
        raise Refused("command.declined", "nothing was done")


async def do_all(run: Run, identifiers: Sequence[str], act: Act, shape: Shape) -> None:
    """Act on each; one answer per success on stdout, one error per failure on stderr, the first failure's exit code."""
    done: list[dict[str, Any]] = []
    first: Refused | None = None
    for identifier in identifiers:
        call = run.call
        if run.key is not None and len(identifiers) > 1:
            call["idempotency_key"] = derived(run.key, identifier)
        try:
            done.append(await act(identifier, call))
        except Refused as refused:
            if len(identifiers) == 1:
                raise
            print_error(refused, run.out.format)
            first = first or refused
    if len(identifiers) == 1 and run.out.format in {Format.JSON, Format.YAML}:
        run.out.one(done[0], shape)
    else:
        run.out.all(done, shape)
    if first is not None:
        raise typer.Exit(exit_code(first))


def settled(run: Run, reply: Any, what: str, **details: Any) -> Any:
    """The reply, unless we waited and it has not settled: then ``wait.timeout``."""
    if run.wait and reply.settled is False:
        raise Refused("wait.timeout", f"{what} has not settled after {run.timeout_s:g} s; it goes on", retryable=True, details=details)
    return reply
