"""What every command of the command line has in common: output, connection, waiting and repeating options, and one way to fail.

A command is an async function whose first argument is a :class:`Run`; :func:`verb` adds the common options to its own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from domain.kernel.errors import Refused
from strandline.cli import parse, where
from strandline.cli.errors import print_error
from strandline.cli.exitcodes import ExitCode, exit_code
from strandline.cli.libraries import quiet
from strandline.cli.output import FORMATS, Format, Output
from strandline.cli.resolve import resolve
from strandline.cli.style import err
from strandline.client import Call, Strandline

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

OUTPUT: Final = "Output"
CONNECTION: Final = "Connection"


@dataclass
class Run:
    """One run of one command: where to go, how to answer, and how long to wait."""

    out: Output
    flags: where.Where
    context: str | None = None
    key: str | None = None
    wait: bool = False
    timeout_s: float = 60
    filters: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    watch: bool = False
    _session: Strandline | None = None

    @functools.cached_property
    def where(self) -> where.Where:
        """Where to go. Raises ``UsageProblem``, ``context.not-found``."""
        return where.find(self.flags, self.context)

    @property
    def s(self) -> Strandline:
        """The session. Commands that were declared with ``connect=False`` have none."""
        if self._session is None:
            raise RuntimeError("this command does not connect")
        return self._session

    @property
    def call(self) -> Call:
        """How to send a command: waiting as long as the caller wants, at most what the contract admits."""
        call = Call(wait_s=min(self.timeout_s, 600) if self.wait else 0)
        if self.key is not None:
            call["idempotency_key"] = self.key
        return call

    async def id(self, noun: str, text: str) -> str:
        """The id that the caller means (strandline/cli/resolve.py)."""
        return await resolve(self.s, noun, text)

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        err(text)


def verb(
    app: typer.Typer,
    name: str,
    *,
    aliases: Sequence[str] = (),
    examples: str = "",
    connect: bool = True,
    mutates: bool = False,
    waits: float | None = None,
    patient: bool = True,
    lists: bool = False,
    watches: bool = False,
    failure: ExitCode | None = None,
    raw: bool = False,
) -> Callable[[F], F]:
    """Register an async function as ``noun name``.

    ``mutates`` adds ``--idempotency-key``; ``waits`` adds ``--wait/--no-wait`` and ``--timeout`` with that many seconds as default
    (``patient`` says whether it waits when nobody says so);
    ``lists`` adds filters and ``--limit``; ``watches`` adds ``--watch``. ``failure`` is the exit code of every failure (``exec``: 125).
    ``raw`` hands everything after the first argument, or after ``--``, on as it is.
    """
    extra = _options(mutates=mutates, waits=waits, patient=patient, lists=lists, watches=watches)

    def register(function: F) -> F:
        body = _body(function, extra, connect=connect, failure=failure)
        settings = {"allow_interspersed_args": False, "ignore_unknown_options": True} if raw else {}
        text = _help(function, examples)
        cls = Passing if raw else None
        app.command(name, cls=cls, help=text, context_settings=settings)(body)
        for alias in aliases:
            app.command(alias, cls=cls, help=text, context_settings=settings, hidden=True)(body)
        return function

    return register


class Passing(TyperCommand):
    """A command that passes words on. ``ID -- WORDS``: ours may stand anywhere before ``--``; ``ID WORDS``: ours stand before the id."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring our options before the id, so that from there on nothing is looked at."""
        if "--" in args:
            cut = args.index("--")
            ours, passed = args[:cut], args[cut:]
            parser = self.make_parser(ctx)
            parser.allow_interspersed_args = True
            values, left, _ = parser.parse_args(list(ours))
            first, *others = (values.get(p.name) for p in self.params if p.param_type_name == "argument")
            if isinstance(first, str) and not any(others) and not left:
                ours.remove(first)
                args = [*ours, first, *passed]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def _help(function: Callable[..., Any], examples: str) -> str:
    text = inspect.cleandoc(function.__doc__ or "")
    lines = [line.strip() for line in examples.strip().splitlines()]
    return text if not lines else text + "\n\n\b\n[bold]Examples[/]\n" + "\n".join(f"  $ {line}".replace("[", r"\[") for line in lines)


def _options(*, mutates: bool, waits: float | None, patient: bool, lists: bool, watches: bool) -> dict[str, tuple[Any, Any]]:
    """Name → (annotation, default) of the options that are added."""
    found: dict[str, tuple[Any, Any]] = {}
    if lists:
        words = typer.Argument(metavar="FIELD=VALUE", help="Only items whose fields are so, e.g. status=READY.", show_default=False)
        found["filter_words"] = (Annotated[list[str] | None, words], None)
        found["limit"] = (Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items.", show_default=False)], None)
    if watches:
        found["watch"] = (
            Annotated[bool, typer.Option("--watch", "-w", help="Go on showing changes: redrawn, or as JSON lines when piped.")],
            False,
        )
    if waits is not None:
        found["wait"] = (Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until what was started has settled.")], patient)
        timeout = typer.Option("--timeout", metavar="DURATION", help="How long to wait.")
        found["timeout"] = (Annotated[str, timeout], f"{waits:g}s")
    if mutates:
        key = typer.Option(
            "--idempotency-key", metavar="KEY", help="The same key never acts twice and gives the same answer.", show_default=False
        )
        found["idempotency_key"] = (Annotated[str | None, key], None)
    return found | COMMON


def _hidden(*names: str) -> Any:
    return typer.Option(*names, hidden=True, rich_help_panel=CONNECTION)


_FORMAT = typer.Option("--output", "-o", metavar="FORMAT", help=FORMATS, rich_help_panel=OUTPUT, show_default=False)
_COLUMNS = typer.Option("--columns", metavar="A,B", help="Only these columns or fields.", rich_help_panel=OUTPUT, show_default=False)
_HEADERS = typer.Option("--no-headers", help="No header line in tables and CSV.", rich_help_panel=OUTPUT)
COMMON: Final[dict[str, tuple[Any, Any]]] = {
    "output": (Annotated[Format | None, _FORMAT], None),
    "columns": (Annotated[str | None, _COLUMNS], None),
    "no_headers": (Annotated[bool, _HEADERS], False),
    "dir": (Annotated[str | None, _hidden("--dir")], None),
    "url": (Annotated[str | None, _hidden("--url")], None),
    "project": (Annotated[str | None, _hidden("--project", "-p")], None),
    "context": (Annotated[str | None, _hidden("--context")], None),
    "creds": (Annotated[str | None, _hidden("--creds")], None),
}
"""Options of every command; those that say where to connect are shown once, at the root."""


def _body(
    function: Callable[..., Awaitable[Any]], extra: dict[str, tuple[Any, Any]], *, connect: bool, failure: ExitCode | None
) -> Callable[..., None]:
    """The plain function that typer sees: the function's own parameters, then the common ones."""
    hints = get_type_hints(function, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in list(inspect.signature(function).parameters.values())[1:]]

    def body(ctx: typer.Context, **given: Any) -> None:
        common = {name: given.pop(name) for name in extra}
        root = ctx.find_root().params
        fmt = common["output"] or root.get("output") or Format.TABLE
        try:
            run = _run(common, root, fmt)
            asyncio.run(_go(function, run, given, connect=connect))
        except Refused as refused:
            print_error(refused, fmt)
            raise typer.Exit(failure or exit_code(refused)) from None
        except (BrokenPipeError, KeyboardInterrupt, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            raise typer.Exit(_surprise(error, fmt, failure)) from error

    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=d) for n, (a, d) in extra.items()]
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature looks for
    body.__annotations__ = {p.name: p.annotation for p in parameters}
    body.__module__, body.__name__ = function.__module__, function.__name__
    return body


def _run(common: dict[str, Any], root: dict[str, Any], fmt: Format) -> Run:
    flags = where.Where(**{name: common[name] or root.get(name) for name in ("dir", "url", "project", "creds")})
    if (common["url"] and not common["dir"]) or (common["dir"] and not common["url"]):
        flags = where.Where(dir=common["dir"], url=common["url"], project=flags.project, creds=flags.creds)
    return Run(
        out=Output(fmt, common["columns"], headers=not common["no_headers"]),
        flags=flags,
        context=common["context"] or root.get("context"),
        key=common.get("idempotency_key"),
        wait=bool(common.get("wait")),
        timeout_s=parse.seconds(common["timeout"]) if common.get("timeout") else 60,
        filters=parse.filters(common.get("filter_words") or ()),
        limit=common.get("limit"),
        watch=bool(common.get("watch")),
    )


async def _go(function: Callable[..., Awaitable[Any]], run: Run, given: dict[str, Any], *, connect: bool) -> None:
    quiet()
    if not connect:
        await function(run, **given)
        return
    at = run.where
    if not at.url and not (Path(at.target) / "connect.json").exists():
        raise Refused("bus.unavailable", f"nothing runs in {at.target}", retryable=True, details={"dir": at.target})
    async with Strandline.connect(
        at.target,
        project=at.project or where.DEFAULT_PROJECT,
        creds=at.creds,
        inbox_prefix=at.inbox_prefix,
        name="strandline-cli",
        timeout=5,
    ) as s:
        run._session = s  # noqa: SLF001 - the run is ours
        await function(run, **given)


def _surprise(error: Exception, fmt: Format, failure: ExitCode | None) -> ExitCode:
    """A failure that nobody foresaw: said in one line, with the traceback for who asks."""
    if os.environ.get("STRANDLINE_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, TimeoutError):
        refused = Refused("wait.timeout", "it took too long", retryable=True)
    else:
        refused = Refused("internal", f"{type(error).__name__}: {error}", details={"debug": "STRANDLINE_DEBUG=1 shows where"})
    print_error(refused, fmt)
    return failure or exit_code(refused)
