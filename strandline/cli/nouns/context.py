"""``strandline context …``"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from domain.kernel.errors import not_found
from strandline.cli import where
from strandline.cli.columns import Column, Shape
from strandline.cli.errors import UsageProblem
from strandline.cli.verb import Run, verb

app = typer.Typer(help="Named places to connect to, kept in config.toml.", no_args_is_help=True)

SHAPE = Shape(
    "name",
    (
        Column("", "mark"),
        Column("NAME", "name"),
        Column("DIR", "dir", flex=True),
        Column("URL", "url", flex=True),
        Column("PROJECT", "project"),
        Column("CREDS", "creds", wide=True),
    ),
)


def _names() -> list[str]:
    return list(where.read_contexts().known)


Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_names, show_default=False)]


def _row(name: str, contexts: where.Contexts) -> dict[str, Any]:
    return {"mark": "*" if name == contexts.current else "", "name": name, **asdict(contexts.known[name])}


@verb(
    app,
    "list",
    aliases=("ls",),
    connect=False,
    examples="""
    strandline context list
    """,
)
async def list_(run: Run) -> None:
    """All contexts; * marks the one in use."""
    contexts = where.read_contexts()
    run.out.all([_row(name, contexts) for name in sorted(contexts.known)], SHAPE)


@verb(
    app,
    "add",
    connect=False,
    examples="""
    strandline context add local --dir ~/.local/share/strandline
    strandline context add prod --url nats://bus.example.org:4222 --creds ~/prod.creds --project web --use
    """,
)
async def add(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    use: Annotated[bool, typer.Option("--use", help="Use it from now on.")] = False,
) -> None:
    """Remember --dir or --url (with --creds and --project) under a name."""
    at = run.where
    if not at.dir and not at.url:
        raise UsageProblem("where is it? give --dir or --url")
    known = replace(at, dir=_absolute(at.dir), creds=_absolute(at.creds))
    contexts = where.read_contexts()
    current = name if use or contexts.current is None else contexts.current
    contexts = where.Contexts(current, {**contexts.known, name: known})
    where.write_contexts(contexts)
    run.out.one(_row(name, contexts), SHAPE)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


@verb(
    app,
    "use",
    connect=False,
    examples="""
    strandline context use prod
    """,
)
async def use_(run: Run, name: Name) -> None:
    """Use this context from now on."""
    contexts = where.read_contexts()
    if name not in contexts.known:
        raise not_found("context", name)
    contexts = where.Contexts(name, contexts.known)
    where.write_contexts(contexts)
    run.out.one(_row(name, contexts), SHAPE)


@verb(
    app,
    "delete",
    aliases=("rm",),
    connect=False,
    examples="""
    strandline context delete old
    """,
)
async def delete(run: Run, name: Name) -> None:
    """Forget a context. Nothing else is touched."""
    contexts = where.read_contexts()
    if name not in contexts.known:
        raise not_found("context", name)
    row = _row(name, contexts)
    left = {other: at for other, at in contexts.known.items() if other != name}
    where.write_contexts(where.Contexts(None if contexts.current == name else contexts.current, left))
    run.out.one(row, SHAPE)
