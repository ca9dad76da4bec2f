"""``strandline event export``: the log as CloudEvents, with a manifest that proves what is in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Literal

import typer

from strandline.cli import audit, shapes
from strandline.cli.errors import UsageProblem
from strandline.cli.nouns.event.group import Id, Since, Types, Until, app, position
from strandline.cli.verb import Run, verb
from strandline.client.cloudevents import to_cloudevent

EXPORTED = shapes.fields("file", "count", "first_seq", "last_seq", "sha256")


@verb(
    app,
    "export",
    examples="""
    strandline event export --to audit.jsonl
    strandline event export --since 2026-11-01 --until 2026-12-01 --to november.jsonl
    strandline event export --to audit.jsonl --resume
    strandline event export --type 'sandbox.*' --to - | jq .type
    """,
)
async def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", metavar="FILE|-", help="Where to write; - is stdout.")] = "-",
    since: Since = None,
    until: Until = None,
    types: Types = None,
    identifier: Id = None,
    form: Annotated[
        Literal["jsonl", "csv"], typer.Option("--format", help="CloudEvents JSON lines, or flat CSV with the data as JSON.")
    ] = "jsonl",
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last event of the file.")] = False,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Where the manifest goes; FILE.manifest.json by default.", show_default=False)
    ] = None,
) -> None:
    """Write events as CloudEvents 1.0, with a manifest: first and last position, count, SHA-256.

    With --to - the manifest goes to stderr, unless --manifest names a file.
    """
    if resume and (to == "-" or since is not None):
        raise UsageProblem("--resume needs --to FILE, and no --since")
    writer = await asyncio.to_thread(audit.Writer.open, to, form, resume=resume, manifest=manifest)
    with writer:
        after = writer.last_seq if resume else await position(run, since) or 0
        writer.about(run.s.project, after, types, identifier)
        last = await position(run, until)
        async for event in run.s.events.read(after=after, until=last, type=types or (), id=identifier):
            writer.write(to_cloudevent(event))
    if to == "-":
        if manifest is None:
            run.note(writer.manifest_text())
        return
    run.out.one(writer.manifest(), EXPORTED)
