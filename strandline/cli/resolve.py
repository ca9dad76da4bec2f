"""Ids as people type them: a whole id, a name or alias, or the first characters of an id when there is only one such."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from domain.kernel import ids
from domain.kernel.errors import Refused, not_found
from strandline.cli.style import counted

if TYPE_CHECKING:
    from strandline.client import Strandline

SHORTEST: Final = 4
"""Characters that a prefix must have."""
GONE: Final = frozenset({"DEAD", "DELETED", "GONE", "DELETING"})
CANDIDATES: Final = 10


@dataclass(frozen=True, slots=True)
class Named:
    """How things of one noun are named: their view, id field, id pattern and name field, and where their state is said."""

    noun: str
    view: str
    key: str
    pattern: str
    name: str | None
    state: str


NOUNS: Final = {
    n.noun: n
    for n in (
        Named("template", "templates", "template_id", ids.TEMPLATE_PATTERN, "alias", "status"),
        Named("sandbox", "sandboxes", "sandbox_id", ids.SANDBOX_PATTERN, "name", "state"),
        Named("snapshot", "snapshots", "snapshot_id", ids.SNAPSHOT_PATTERN, "name", "status"),
        Named("job", "jobs", "job_id", ids.JOB_PATTERN, None, "status"),
        Named("artifact", "artifacts", "artifact_id", ids.ARTIFACT_PATTERN, None, "status"),
        Named("rollout", "rollouts", "rollout_id", ids.ROLLOUT_PATTERN, None, "state"),
        Named("node", "nodes", "node_id", r"(?!)", None, "status"),
    )
}


def ambiguous(noun: str, text: str, candidates: list[str]) -> Refused:
    """More than one thing could be meant; exit code 2."""
    shown = sorted(candidates)[:CANDIDATES]
    return Refused(f"{noun}.ambiguous", f"{text!r} could be {counted(len(candidates), noun)}", details={"candidates": shown})


async def resolve(s: Strandline, noun: str, text: str) -> str:
    """The id that ``text`` means. Raises ``<noun>.not-found`` and ``<noun>.ambiguous``."""
    named = NOUNS[noun]
    if re.fullmatch(named.pattern, text):
        return text
    if named.name is not None and text:
        owners = [row async for row in s.views.list(named.view, where={named.name: text})]
        alive = [row for row in owners if row.get(named.state) not in GONE]
        if len(alive or owners) == 1:
            return str((alive or owners)[0][named.key])
        if owners:
            raise ambiguous(noun, text, [str(row[named.key]) for row in alive or owners])
    if len(text) >= SHORTEST or noun == "node":
        return await _by_prefix(s, named, text)
    raise not_found(noun, text)


async def _by_prefix(s: Strandline, named: Named, text: str) -> str:
    found: list[str] = []
    async with contextlib.aclosing(_rows(s, named)) as rows:
        async for row in rows:
            identifier = str(row[named.key])
            if identifier == text:
                return identifier
            if starts(identifier, text):
                found.append(identifier)
    if not found or len(text) < SHORTEST:
        raise not_found(named.noun, text)
    if len(found) > 1:
        raise ambiguous(named.noun, text, found)
    return found[0]


async def _rows(s: Strandline, named: Named) -> AsyncGenerator[dict[str, Any], None]:
    async for row in s.views.list(named.view):
        yield row


def starts(identifier: str, text: str) -> bool:
    """Whether ``text`` begins the id, with or without its kind (``sb-``)."""
    own = re.sub(r"^(?:tpl|snap|sb|rfs)-", "", identifier)
    return identifier.startswith(text) or own.startswith(text)


Resolver = Callable[["Strandline", str, str], Any]
