"""``strandline api …``"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from strandline.cli.columns import Shape
from strandline.cli.errors import UsageProblem
from strandline.cli.output import Format
from strandline.cli.verb import Run, verb

app = typer.Typer(help="Any command or query by its wire name.", no_args_is_help=True)

Body = Annotated[str, typer.Argument(metavar="JSON|-", help="The body; - reads it from stdin.")]


@verb(
    app,
    "command",
    mutates=True,
    examples="""
    strandline api command template.create '{"image": "docker://docker.io/library/alpine:3.20"}'
    echo '{"sandbox_id": "sb-aaaaaaaaaaaaaaaaaaaa"}' | strandline api command sandbox.pause -
    """,
)
async def command(run: Run, name: Annotated[str, typer.Argument(metavar="NOUN.VERB", show_default=False)], body: Body = "{}") -> None:
    """Send a command and print the whole reply."""
    _print(run, await run.s.command(_name(name), _body(body), run.call))


@verb(
    app,
    "query",
    examples="""
    strandline api query sandboxes.list '{"state": "RUNNING", "limit": 10}'
    strandline api query compat-matrix.summary
    """,
)
async def query(run: Run, name: Annotated[str, typer.Argument(metavar="VIEW.VERB", show_default=False)], body: Body = "{}") -> None:
    """Ask a view and print the whole reply."""
    view, _, verb_ = _name(name).rpartition(".")
    _print(run, await run.s.query(view, verb_, _body(body)))


def _print(run: Run, reply: dict[str, Any]) -> None:
    """Whole replies are JSON unless somebody wants YAML or columns."""
    if run.out.format in {Format.TABLE, Format.WIDE} and not run.out.names:
        run.out.format = Format.JSON
    run.out.one(reply, Shape("id", ()))


def _name(text: str) -> str:
    if "." not in text.strip("."):
        raise UsageProblem(
            f"not a wire name: {text!r}", "wire names are noun.verb, e.g. sandbox.create, and view.verb, e.g. sandboxes.list"
        )
    return text


def _body(text: str) -> dict[str, Any]:
    source = sys.stdin.read() if text == "-" else text
    try:
        body = json.loads(source or "{}")
    except json.JSONDecodeError as error:
        raise UsageProblem(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageProblem("the body is not a JSON object")
    return body
