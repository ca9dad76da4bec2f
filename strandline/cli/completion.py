"""Completion of ids from the control plane, within 300 ms or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import typer

from domain.kernel.errors import Refused
from strandline.cli import where
from strandline.cli.libraries import quiet
from strandline.cli.resolve import GONE, NOUNS, starts
from strandline.client import Strandline

LIMIT_S: Final = 0.3
MOST: Final = 200


def complete(noun: str) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """A completer for ids and names of a noun, each with its state as help text. Never raises: a shell waits for it."""

    def completer(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        quiet()
        with contextlib.suppress(Refused, TimeoutError, OSError, ValueError):
            return asyncio.run(_within(LIMIT_S, _candidates(noun, _where(ctx), incomplete)))
        return []

    return completer


def _where(ctx: typer.Context) -> where.Where:
    given: dict[str, Any] = {**ctx.find_root().params, **{k: v for k, v in ctx.params.items() if v}}
    flags = where.Where(**{name: given.get(name) for name in ("dir", "url", "project", "creds")})
    return where.find(flags, given.get("context"))


async def _within(seconds: float, candidates: Awaitable[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    async with asyncio.timeout(seconds):
        return await candidates


async def _candidates(noun: str, at: where.Where, incomplete: str) -> list[tuple[str, str]]:
    named = NOUNS[noun]
    found: list[tuple[str, str]] = []
    async with Strandline.connect(at.target, project=at.project or "", creds=at.creds, inbox_prefix=at.inbox_prefix, timeout=LIMIT_S) as s:
        async for row in s.views.list(named.view, limit=MOST):
            state = str(row.get(named.state) or "")
            name = row.get(named.name) if named.name else None
            if state in GONE:
                continue
            if name and str(name).startswith(incomplete):
                found.append((str(name), f"{row[named.key]} {state}"))
            elif starts(str(row[named.key]), incomplete):
                found.append((str(row[named.key]), f"{name or ''} {state}".strip()))
    return found
