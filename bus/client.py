"""Asking: commands and queries by request/reply, with the bus's failures turned into one refusal and safe repetition.

A command keeps its id through all repetitions, so that it acts at most once however often it has to be sent (design.md §3).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

import orjson
from nats.aio.client import Client

from bus import answers, subjects
from bus.answers import ACTOR_HEADER, CALL_ID_HEADER, COMMAND_ID_HEADER, TRACE_HEADER
from bus.requests import patiently, request
from domain.kernel.command import MAX_BODY
from domain.kernel.errors import Invalid, Refused
from domain.kernel.ids import NAME_PATTERN

_NAME: Final = re.compile(r"[a-z0-9-]{1,64}\.[a-z0-9-]{1,64}")
_PATIENCE: Final = 5.0
"""Seconds one sending waits for its answer; whoever took it may have died, so it is then sent again. A repetition joins the first sending
where that is still worked on, so this need not be as long as the command's own ``wait_s``."""
_REPEATS: Final = 30
"""How often a long wait is asked about, at most: its repetitions are further apart."""
_AGAIN: Final = frozenset({"bus.unavailable", "bus.overloaded"})


class Caller:
    """Sends commands and queries over one connection. ``actor`` is believed only by a control plane that trusts this connection."""

    def __init__(self, nc: Client, *, actor: str | None = None) -> None:
        self._nc = nc
        self._actor = actor

    async def command(
        self,
        project: str,
        name: str,
        body: Mapping[str, Any],
        command_id: str | None = None,
        timeout: float = 30,
        trace: str | None = None,
    ) -> dict[str, Any]:
        """Give a command and return its whole reply. ``timeout`` counts from when the command's own ``wait_s`` is over.

        Raises the ``Refused`` of the reply, or ``bus.unavailable`` when nobody answered in time: then the outcome is unknown, and the same
        call with the same command id finds out.
        """
        if not _NAME.fullmatch(name):
            raise Refused("command.unknown", f"not the name of a command: {name[:128]!r}", details={"nearest": []})
        _check(project)
        noun, verb = name.split(".")
        wait = float(body.get("wait_s") or 0)
        headers = {COMMAND_ID_HEADER: command_id} if command_id is not None else {CALL_ID_HEADER: secrets.token_hex(16)}
        if self._actor is not None:
            headers[ACTOR_HEADER] = self._actor
        if trace is not None:
            headers[TRACE_HEADER] = trace
        return await self._ask(subjects.command(project, noun, verb), body, headers, wait + timeout, max(_PATIENCE, wait / _REPEATS))

    async def query(self, project: str, view: str, verb: str, body: Mapping[str, Any] | None = None, timeout: float = 10) -> dict[str, Any]:
        """Ask a view and return its whole reply. Raises ``Refused``."""
        if not _NAME.fullmatch(f"{view}.{verb}"):
            raise Refused("query.unknown", f"not the name of a query: {view[:64]!r} {verb[:64]!r}", details={"nearest": []})
        _check(project)
        return await self._ask(subjects.query(project, view, verb), body or {}, {}, timeout, _PATIENCE)

    async def _ask(self, subject: str, body: Mapping[str, Any], headers: dict[str, str], timeout: float, patience: float) -> dict[str, Any]:
        data = orjson.dumps(body)
        if len(data) > MAX_BODY:
            raise Refused("command.too-large", f"the body has {len(data)} bytes; {MAX_BODY} is the limit")

        async def once(left: float) -> dict[str, Any]:
            return answers.read(await request(self._nc, subject, data, headers, min(left, patience)))

        return await patiently(once, timeout, _AGAIN)


def _check(project: str) -> None:
    if not re.fullmatch(NAME_PATTERN, project):
        raise Invalid("not the name of a project", {"project": f"must match {NAME_PATTERN}"})
