"""What callers can ask of pools."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from domain.kernel.aggregate import Record
from domain.kernel.command import Command
from domain.kernel.ids import TemplateId
from domain.sandboxes.pool import HARD_MAXIMUM

TemplateOrAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class PoolStatus(Record):
    """The pool after the command. ``settled``: had it what was asked for within ``wait_s``?"""

    template_id: TemplateId
    state: str
    desired: int
    current: int
    ready: int
    settled: bool = False


class _OnPool(Command):
    RESULT: ClassVar[type[Record] | None] = PoolStatus

    template: TemplateOrAlias


class PoolSet(_OnPool):
    """Keep so many sandboxes of a template running; what is not given stays, or is the default of a new pool.

    ``warm`` (true at first): whoever creates a sandbox of it, and says nothing of how or where it starts, is given one of them at
    once, and the pool gets another. ``idle_s``: a member that nobody used for longer goes, and ``desired`` is one less; -1: none does.
    """

    NOUN: ClassVar[str] = "pool"
    VERB: ClassVar[str] = "set"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base", "desired": 4, "idle_s": 900}

    desired: Annotated[int, Field(ge=0, le=HARD_MAXIMUM)] | None = None
    maximum: Annotated[int, Field(ge=1, le=HARD_MAXIMUM)] | None = Field(default=None, validate_default=True)
    warm: bool | None = None
    idle_s: Annotated[float, Field(ge=-1, le=31 * 86_400)] | None = None

    @field_validator("maximum")
    @classmethod
    def _at_least_the_desired(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < (info.data.get("desired") or 0):
            raise ValueError("at most is less than desired")
        return most


class PoolDelete(_OnPool):
    """Stop its members and forget it. Sandboxes that were handed over are nobody's business any more."""

    NOUN: ClassVar[str] = "pool"
    VERB: ClassVar[str] = "delete"
    EXAMPLE: ClassVar[dict[str, Any]] = {"template": "base"}
