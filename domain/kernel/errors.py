"""Refusals: what a caller is told when a command, or a claim, is not accepted.

``code`` is the API (``<noun>.<kebab-reason>``, design.md §3); the text is for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a malfunction
    """The command was understood and is not carried out; nothing changed.

    ``retryable`` says whether the very same command can succeed later without anybody changing it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.details = dict(details or {})

    def __repr__(self) -> str:
        return f"Refused({self.code!r}, {self.message!r})"

    def as_dict(self) -> dict[str, Any]:
        """The ``error`` object of a reply (design.md §3)."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class Invalid(Refused):
    """The body of a command or query is not what its schema says. ``details`` has one entry per field."""

    def __init__(self, message: str, fields: Mapping[str, str]) -> None:
        super().__init__("command.invalid", message, details=dict(fields))


def not_found(noun: str, identifier: str) -> Refused:
    """The refusal for an id, name or alias that names nothing in this project."""
    return Refused(f"{noun}.not-found", f"no {noun} {identifier!r}", details={"id": identifier})
