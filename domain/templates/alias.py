"""The alias: a name that resolves to one template. Its id is the name, so that two holders are impossible (design.md §4).

FREE  nobody has it.
HELD  it resolves to ``template_id``. Claiming it takes it over from the former holder (reference/cubesandbox.md §4.5).
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Self

from domain.kernel.aggregate import Aggregate, CreatedEvent, Event
from domain.kernel.errors import Invalid
from domain.kernel.ids import NAME_PATTERN
from domain.kernel.lifecycle import Lifecycle

RESERVED_PREFIXES: Final = ("tpl-", "snap-")
"""A name that looks like an id would be ambiguous wherever either is accepted (reference/cubesandbox.md §1.1)."""


class AliasState(StrEnum):
    FREE = "FREE"
    HELD = "HELD"


LIFECYCLE: Final = Lifecycle(
    "alias",
    AliasState,
    """
             FREE  HELD
    claim    HELD  HELD
    release  =     FREE
    """,
)


def check_alias(name: str) -> str:
    """``name`` if it may be an alias. Raises ``Invalid``."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise Invalid("the alias is not valid", {"alias": "lower-case letters, digits and dashes, at most 63, not beginning with a dash"})
    if name.startswith(RESERVED_PREFIXES):
        raise Invalid("the alias is not valid", {"alias": "it must not look like a template or snapshot id"})
    return name


class AliasCreated(CreatedEvent):
    TOPIC = "alias.created"

    def apply(self, alias: Alias) -> None:
        alias.state = AliasState.FREE
        alias.template_id = None


class AliasClaimed(Event):
    TOPIC = "alias.claimed"
    template_id: str
    previous: str | None = None

    def apply(self, alias: Alias) -> None:
        alias.state = AliasState.HELD
        alias.template_id = self.template_id


class AliasReleased(Event):
    TOPIC = "alias.released"
    template_id: str

    def apply(self, alias: Alias) -> None:
        alias.state = AliasState.FREE
        alias.template_id = None


class Alias(Aggregate):
    TOPIC = "alias"
    LIFECYCLES: ClassVar = {"state": LIFECYCLE}

    state: AliasState
    template_id: str | None

    @classmethod
    def create(cls, id: str, at: datetime, template_id: str | None = None) -> Self:  # noqa: A002
        """A name nobody had yet; claimed at once when ``template_id`` is given. Raises ``Invalid``."""
        alias = cls.begin(AliasCreated, check_alias(id), at)
        if template_id is not None:
            alias.claim(at, template_id)
        return alias

    def claim(self, at: datetime, template_id: str) -> str | None:
        """Make it resolve to ``template_id``. Says who had it until now, if somebody else did."""
        previous = self.template_id
        if template_id == previous:
            return None
        if LIFECYCLE.admits("claim", self.state):
            self.record(AliasClaimed, at, template_id=template_id, previous=previous)
        return previous

    def release(self, at: datetime, template_id: str) -> None:
        """Give it up; only its holder can."""
        if template_id == self.template_id and LIFECYCLE.admits("release", self.state):
            self.record(AliasReleased, at, template_id=template_id)
