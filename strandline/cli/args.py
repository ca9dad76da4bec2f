"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli.completion import complete


def _id(noun: str, text: str) -> typer.models.ArgumentInfo:
    found: typer.models.ArgumentInfo = typer.Argument(metavar=noun.upper(), help=text, autocompletion=complete(noun), show_default=False)
    return found


Template = Annotated[str, _id("template", "Its id, alias, or the first characters of the id.")]
Templates = Annotated[list[str] | None, _id("template", "Ids, aliases, or first characters of ids.")]
Sandbox = Annotated[str, _id("sandbox", "Its id, name, or the first characters of the id.")]
Sandboxes = Annotated[list[str] | None, _id("sandbox", "Ids, names, or first characters of ids.")]
Snapshot = Annotated[str, _id("snapshot", "Its id, name, or the first characters of the id.")]
Snapshots = Annotated[list[str], _id("snapshot", "Ids, names, or first characters of ids.")]
Job = Annotated[str, _id("job", "Its id, or the first characters of it.")]
Node = Annotated[str, _id("node", "The node's id.")]

AsOf = Annotated[
    str | None,
    typer.Option("--as-of", metavar="SEQ|TIME", help="As it was at a log position, an instant, or a time ago (15m).", show_default=False),
]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment variable; repeatable.", show_default=False)
]
Ports = Annotated[
    list[int] | None, typer.Option("--port", min=1, max=65_535, help="Port that the workload serves; repeatable.", show_default=False)
]
Cpu = Annotated[float | None, typer.Option("--cpu", help="Cores.", show_default=False)]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory, e.g. 512M or 2G.", show_default=False)]
Nodes = Annotated[str | None, typer.Option("--nodes", metavar="A,B", help="Only these nodes.", show_default=False)]
MinReplicas = Annotated[
    int | None, typer.Option("--min-replicas", min=0, max=10_000, help="So many nodes get it before others get theirs.", show_default=False)
]
MaxReplicas = Annotated[int | None, typer.Option("--max-replicas", min=1, max=10_000, help="No more nodes get it.", show_default=False)]
Priority = Annotated[
    int | None, typer.Option("--priority", min=-1000, max=1000, help="The greater, the sooner nodes get it.", show_default=False)
]
IfNotExists = Annotated[bool, typer.Option("--if-not-exists", help="Answer with the one that has this name already, if there is one.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
All = Annotated[bool, typer.Option("--all", help="All that the filters leave (field=value); needs --yes without a terminal.")]
