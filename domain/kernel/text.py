"""Texts that end up in events: bounded, whoever wrote them."""

from __future__ import annotations

from typing import Annotated, Final, Protocol, TypeAlias

from pydantic import StringConstraints

MAX_ERROR: Final = 4096
"""Characters of an error text that are worth keeping."""

ErrorText = Annotated[str, StringConstraints(max_length=MAX_ERROR)]


class _HasMessage(Protocol):
    @property
    def message(self) -> str: ...


Why: TypeAlias = str | _HasMessage | None
"""A reason: a text, or a failure that has one."""


def clip(why: Why, limit: int = MAX_ERROR) -> str | None:
    """The reason's text without what is beyond ``limit``; None for an empty one, so that "no error" has one form."""
    text = why if why is None or isinstance(why, str) else why.message
    if not text:
        return None
    return text if len(text) <= limit else text[: limit - 1] + "…"
