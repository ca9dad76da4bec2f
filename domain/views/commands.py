"""What operators can ask of views (contract.md)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import StringConstraints

from domain.kernel.aggregate import Record
from domain.kernel.command import Command
from domain.kernel.ids import Name


class ViewRebuilt(Record):
    """The generation that is being built, or is live now if ``settled``."""

    generation: int
    settled: bool = False


class ViewRebuild(Command):
    """Replay the log into a new generation of a view, then switch. ``until``: a sequence or an instant (RFC 3339) to stop at."""

    NOUN: ClassVar[str] = "view"
    VERB: ClassVar[str] = "rebuild"
    EXAMPLE: ClassVar[dict[str, Any]] = {"view": "sandboxes"}
    RESULT: ClassVar[type[Record]] = ViewRebuilt

    view: Name
    until: (
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$|^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,15}(Z|[+-][0-9]{2}:[0-9]{2})$")]
        | None
    ) = None
