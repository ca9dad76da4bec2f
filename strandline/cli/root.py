"""The root group: loads the command that is asked for and no other, and gives every usage error the same manners."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperCommand, TyperGroup

from strandline.cli.errors import UsageProblem, print_error
from strandline.cli.exitcodes import ExitCode
from strandline.cli.output import Format
from strandline.cli.style import err

USAGE_ERRORS: Final[type[Exception]] = next(
    cls for cls in typer.BadParameter.__mro__ if issubclass(cls, Exception) and cls.__name__ == "ClickException"
)
"""The base of click's own errors, wherever this typer keeps its click."""


class Root(TyperGroup):
    """``table``: name → (module with ``app``, help panel, one line of help). ``placed``: commands that have a ``--dir`` of their own.

    ``unplaced``: commands that take no directory, and what to say to who gives them one.
    """

    table: ClassVar[dict[str, tuple[str, str, str]]] = {}
    placed: ClassVar[frozenset[str]] = frozenset()
    unplaced: ClassVar[dict[str, str]] = {}
    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """All that this installation has; parts that are not installed are not shown."""
        return [name for name, (module, _, _) in self.table.items() if importlib.util.find_spec(module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature is typer's
        """The command, imported now; for the overview only its line of help."""
        if cmd_name not in self.table:
            return None
        module, panel, text = self.table[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=text, rich_help_panel=panel)
        if cmd_name not in self.commands and importlib.util.find_spec(module) is not None:
            command = typer.main.get_command(importlib.import_module(module).app)
            command.name = cmd_name
            command.params = [p for p in command.params if not {"--install-completion", "--show-completion"} & set(p.opts)]
            self.commands[cmd_name] = command
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The same, with every name known to the search for near misses."""
        for name in self.list_commands(ctx) if args and args[0] not in self.table else ():
            self.get_command(ctx, name)
        found, command, rest = super().resolve_command(ctx, args)
        if found in self.unplaced and ctx.params.get("dir"):
            raise typer.BadParameter(self.unplaced[found], param_hint="--dir")
        if found in self.placed and ctx.params.get("dir"):
            rest = ["--dir", ctx.params["dir"], *rest]
        return found, command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The overview, without importing what it lists."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]  # fewer arguments than click passes on
        """Run, and end with the exit code. Usage errors look like every other error."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args=words, prog_name=prog_name or "strandline", standalone_mode=False, **extra)
        except USAGE_ERRORS as error:
            code = _usage_error(error, words)
        except typer.Abort:
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            code = _nobody_reads()
        if standalone_mode:
            sys.exit(int(code or 0))
        return code


def _usage_error(error: Any, words: Sequence[str]) -> int:
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        err(error.format_message())
        return ExitCode.USAGE
    path = ctx.command_path if ctx is not None else "strandline"
    print_error(UsageProblem(error.format_message(), f"{path} --help"), _format(words))
    return ExitCode.USAGE


def _format(words: Sequence[str]) -> str:
    """The output format, read from the words because they could not be parsed."""
    found = "table"
    for i, word in enumerate(words):
        if word == "--":
            break
        for option in ("--output=", "-o"):
            if word.startswith(option) and len(word) > len(option):
                found = word.removeprefix(option)
        if word in {"-o", "--output"} and i + 1 < len(words):
            found = words[i + 1]
    return found if found in {f.value for f in Format} else "table"


def _nobody_reads() -> int:
    """The reader of our output has gone (``| head``): end quietly, and keep the interpreter from complaining at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
