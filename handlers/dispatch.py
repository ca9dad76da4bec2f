"""From a request on the bus to a reply: parse, recognise repeats, hand to the noun's handler, remember the answer.

The same command id with the same body gives the same answer for ever, and acts once (design.md §3). Two things make it so: aggregates
remember the ids of the commands in their history, and receipts bind the ids that callers chose to one body before it acts (docs/adr/0012).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from bus.endpoints import Reply, Request
from bus.receipts import Receipts
from domain.kernel.command import Cause, Command
from domain.kernel.errors import Invalid
from domain.kernel.ids import NAME_PATTERN
from domain.kernel.registry import COMMANDS
from handlers.control import Control, because, digest_of

_PROJECT = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed command with everything a handler needs to know about the asking.

    ``idle``: what a handler wraps every wait in, so that another request can work meanwhile; :meth:`wait` does.
    """

    project: str
    command_id: str
    cause: Cause
    idle: Callable[[], AbstractAsyncContextManager[None]] = nullcontext

    async def wait(self, control: Control, kind: str, identifier: str, settled: Callable[[], Awaitable[bool]], seconds: float) -> bool:
        """Until ``settled`` says so after a commit of that aggregate, or ``seconds`` are over; says which. Others work meanwhile."""
        if seconds <= 0:
            return await settled()
        async with self.idle():
            return await control.waiting.until(kind, self.project, identifier, settled, seconds)


Handler = Callable[[Control, Asked, Any], Awaitable[Reply]]


class Dispatcher:
    """Finds the handler of ``noun.verb`` and wraps it in idempotency."""

    def __init__(self, control: Control, receipts: Receipts, handlers: dict[type[Command], Handler]) -> None:
        self._control = control
        self._receipts = receipts
        self._handlers = {cls.wire_name(): (cls, handler) for cls, handler in handlers.items()}

    @property
    def commands(self) -> dict[str, type[Command]]:
        """What is served, by ``noun.verb``."""
        return {name: cls for name, (cls, _) in self._handlers.items()}

    async def handle(self, request: Request) -> Reply:
        """The reply to one request. Raises ``Refused``."""
        if not _PROJECT.match(request.project):
            raise Invalid("the project is not a name", {"project": "lower-case letters, digits and '-', at most 63"})
        cls, handler = self._handlers[request.name]
        command = cls.parse(request.body)
        digest = digest_of([request.name, command.model_dump(mode="json", exclude={"wait_s"})])
        cause = Cause(request.command_id, digest, request.actor, request.project, self._control.clock(), None, request.trace)
        asked = Asked(request.project, request.command_id, cause, request.waiting)
        with because(None, request.trace):
            return await self._receipts.once(request, digest, lambda: handler(self._control, asked, command))


def served() -> dict[str, type[Command]]:
    """Every command of the contract, by ``noun.verb``."""
    return dict(COMMANDS)
