"""``strandline sandbox why``: why a sandbox is here and not there, and where one would go."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from strandline.cli import args, parse
from strandline.cli.columns import Column, Shape
from strandline.cli.errors import UsageProblem
from strandline.cli.nouns.sandbox.create import FromSnapshot, NodeLabels, OnNode, Strategy
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.output import Format
from strandline.cli.style import out
from strandline.cli.verb import Run, verb

WHY: Final = Shape(
    "node_id",
    (
        Column("NODE", "node_id"),
        Column("RANK", "rank", right=True),
        Column("HERE", "here"),
        Column("SCORE", "score", right=True),
        Column("CODE", "code"),
        Column("REASON", "reason", flex=True),
        Column("STATUS", "status", state=True, wide=True),
        Column("FREE CPU", "free_cpu", right=True, wide=True),
        Column("FREE MIB", "free_memory_mb", right=True, wide=True),
        Column("LABELS", "labels", wide=True, flex=True),
    ),
)


@verb(
    app,
    "why",
    examples="""
    strandline sandbox why web
    strandline sandbox why --template python --memory 8G --strategy pack
    strandline sandbox why --template python --node-label zone=a -o json
    """,
)
async def why(
    run: Run,
    sandbox: Annotated[
        str | None,
        typer.Argument(
            metavar="SANDBOX",
            help="Its id, name, or the first characters of the id.",
            autocompletion=args.complete("sandbox"),
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="For one of this template.", autocompletion=args.complete("template"), show_default=False),
    ] = None,
    snapshot: FromSnapshot = None,
    cpu: args.Cpu = None,
    memory: args.Memory = None,
    node: OnNode = None,
    node_label: NodeLabels = None,
    strategy: Strategy = None,
) -> None:
    """Why a sandbox is on its node, and why not on another one; or where one would go. Nothing is created."""
    if sum(given is not None for given in (sandbox, template, snapshot)) != 1:
        raise UsageProblem("of what?", "name a sandbox, or --template, or --snapshot")
    identifier = await run.id("sandbox", sandbox) if sandbox else None
    wishes: dict[str, Any] = {
        "template": template,
        "snapshot_id": await run.id("snapshot", snapshot) if snapshot else None,
        "cpu": cpu,
        "memory_mb": parse.mebibytes(memory) if memory else None,
        "node": node,
        "node_labels": parse.pairs(node_label, "a label"),
        "strategy": strategy,
    }
    found = [verdict async for verdict in run.s.sandboxes.why(identifier, **wishes)]
    if identifier is not None and run.out.format in {Format.TABLE, Format.WIDE} and not run.out.names:
        _decided((await run.s.sandboxes.get(identifier)).raw())
    run.out.all(sorted(found, key=lambda verdict: (verdict.rank or len(found) + 1, verdict.node_id)), WHY)


def _decided(sandbox: dict[str, Any]) -> None:
    """What was written down when it was created."""
    placed = sandbox.get("placed")
    if placed is None:
        return
    by = f"asked for {placed['node']}" if placed["node"] else f"{placed['strategy']}, score {placed['score']:g}"
    why_not = ", ".join(f"{count} {code}" for code, count in placed["refused"].items())
    other = f", else {placed['runner_up']}" if placed["runner_up"] else ""
    refused = f"; not: {why_not}" if why_not else ""
    out(f"on {sandbox['node_id']}: {by}; {placed['fitting']} of {placed['considered']} nodes fitted{other}{refused}\n")
