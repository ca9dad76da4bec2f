"""Texts that end up in events: bounded, whoever wrote them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import StringConstraints

MAX_ERROR: Final = 4096
"""Characters of an error text that are worth keeping."""

ErrorText = Annotated[str, StringConstraints(max_length=MAX_ERROR)]


def clip(text: str | None, limit: int = MAX_ERROR) -> str | None:
    """``text`` without what is beyond ``limit``; None for an empty one, so that "no error" has one form."""
    if not text:
        return None
    return text if len(text) <= limit else text[: limit - 1] + "…"
