"""``strandline sandbox exec``: one more program inside."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
import sys
from typing import Annotated, Any, Final

import typer

from domain.kernel.errors import Refused
from strandline.cli import args, parse, shapes
from strandline.cli.errors import UsageProblem
from strandline.cli.exitcodes import ExitCode
from strandline.cli.nouns.sandbox.group import app
from strandline.cli.output import Format
from strandline.cli.verb import Run, verb
from strandline.client.replies import Executed

MAX_STDIN: Final = 147_456
"""Bytes: what base64 leaves of the contract's limit for ``stdin``."""
Tool = ExitCode.EXEC_FAILED


@verb(
    app,
    "exec",
    mutates=True,
    raw=True,
    failure=Tool,
    examples="""
    strandline sandbox exec web -- ls -la /srv
    strandline sandbox exec web -o json -- uname -a
    strandline sandbox exec -e MODE=test -w /srv web python -c 'print("as it stands: $HOME")'
    tar c . | strandline sandbox exec web -- tar x -C /srv
    """,
)
async def exec_(
    run: Run,
    sandbox: args.Sandbox,
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND", help="Program and arguments, passed on exactly; no shell reads them.", show_default=False),
    ],
    env: args.Env = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Directory to run in.", show_default=False)] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User to run as.", show_default=False)] = None,
    stdin: Annotated[
        bool | None,
        typer.Option("--stdin/--no-stdin", "-i", help="Pass stdin on; by default when it is a pipe or a file.", show_default=False),
    ] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Kill it after so long.")] = "60s",
) -> None:
    """Run a program in a sandbox. Its exit code is ours; 125 when it could not be run.

    What follows -- is the program. Without -- it is everything after the sandbox, and our options stand before it.
    """
    program = command[1:] if command[:1] == ["--"] else command
    if not program:
        raise UsageProblem("which program?")
    seconds = parse.seconds(timeout)
    reply = await run.s.sandboxes.exec(
        await run.id("sandbox", sandbox),
        program,
        env=parse.pairs(env, "a variable"),
        cwd=workdir,
        user=user,
        stdin=await asyncio.to_thread(_stdin, stdin),
        timeout_s=seconds,
        **run.call,
    )
    _show(run, reply)
    if reply.timed_out:
        raise Refused("exec.timed-out", f"{program[0]} was killed after {seconds:g} s", details={"timeout_s": seconds})
    raise typer.Exit(reply.exit_code or 0)


def _stdin(wanted: bool | None) -> bytes | None:
    """All of stdin, when it is wanted or was clearly given: a pipe or a file. Raises ``UsageProblem`` beyond the limit."""
    if wanted is False or sys.stdin is None or sys.stdin.closed:
        return None
    if wanted is None and not _given(sys.stdin):
        return None
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise UsageProblem(f"stdin has more than {MAX_STDIN} bytes", "put large files into the image")
    return data or None


def _given(stream: Any) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return not stream.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _show(run: Run, reply: Executed) -> None:
    out, err = base64.b64decode(reply.stdout), base64.b64decode(reply.stderr)
    if run.out.format in {Format.TABLE, Format.WIDE, Format.NAME}:
        sys.stdout.flush()
        sys.stdout.buffer.write(out)
        sys.stdout.buffer.flush()
        sys.stderr.flush()
        sys.stderr.buffer.write(err)
        sys.stderr.buffer.flush()
        if reply.truncated:
            run.note("output was cut: at most 1 MiB of each stream is passed on")
        return
    row = {
        "exit_code": reply.exit_code,
        **_text("stdout", out),
        **_text("stderr", err),
        "truncated": reply.truncated,
        "timed_out": reply.timed_out,
    }
    run.out.one(row, shapes.fields("exit_code", "stdout", "stderr", "truncated", "timed_out"))


def _text(name: str, data: bytes) -> dict[str, str]:
    """Output as text, or as base64 under another name when it is not UTF-8."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
