"""Commands that were published and left alone: a work queue, the same handlers, and an outcome that is kept for a week (design.md §3).

Submitted commands are not ordered among each other. A message without a command id gets one from its place in the stream, so that its
redelivery after a crash is a repetition. Who submitted a command is not known: the server keeps no word about that with a stored
message, and what its headers claim is not believed, so its actor is the project whose subject it came on.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any, Final

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import answers, subjects
from bus.answers import COMMAND_ID_HEADER
from bus.endpoints import Handler, Request, read_request, unknown
from bus.reader import Delivery, Item, Reader, Work, ensure_consumer
from bus.requests import Ack, store
from domain.kernel.errors import Invalid, Refused
from domain.kernel.ids import COMMAND_ID, derived
from domain.kernel.registry import COMMANDS

log = structlog.get_logger(__name__)

SUBMIT_WORK: Final = Work(limit=512, parallel=64, tries=8)
DURABLE: Final = "submit"


async def submit(nc: Client, project: str, name: str, body: Mapping[str, Any], command_id: str | None = None) -> tuple[str, Ack]:
    """Leave a command on the bus; its command id says where its outcome will be. Raises ``Refused`` (``bus.unavailable``)."""
    given = command_id or secrets.token_hex(16)
    noun, _, verb = name.partition(".")
    headers = {COMMAND_ID_HEADER: given}
    return given, await store(nc, subjects.submit(project, noun, verb), orjson.dumps(body), msg_id=f"{project}.{given}", headers=headers)


class SubmitWorker(Reader[Request]):
    """Carries submitted commands out by the handler of the asked ones, publishes what it answers, then acks."""

    def __init__(self, nc: Client, handle: Handler, *, commands: Collection[str] = COMMANDS, work: Work = SUBMIT_WORK) -> None:
        self._answered = handle
        self._commands = commands

        async def attach(fresh: bool) -> None:
            await ensure_consumer(nc, subjects.SUBMIT, DURABLE, subjects.ALL_SUBMITTED, work, memory=False, fresh=fresh)

        super().__init__(nc, subjects.SUBMIT, DURABLE, attach, decode_submitted, self._carry_out, work)

    async def _carry_out(self, request: Request, delivery: Delivery[Request]) -> None:
        last_try = delivery.failures + 1 >= self._work.tries
        try:
            if request.name not in self._commands:
                raise unknown("command", request.name, self._commands)  # noqa: TRY301 - answered like any other refusal
            reply = await self._answered(request)
            outcome = answers.success(request.command_id, reply.id, reply.seq, reply.result)
        except Refused as refused:
            if refused.retryable and not last_try:
                raise
            outcome = answers.refusal(request.command_id, refused)
        except Exception:
            if not last_try:
                raise
            reference = secrets.token_hex(6)
            log.exception("submit.failed", command=request.name, reference=reference)
            internal = Refused("internal", f"internal error {reference}; see the log of the control plane")
            outcome = answers.refusal(request.command_id, internal)
        await store(self._nc, subjects.outcome(request.project, request.command_id), outcome)


def decode_submitted(message: Msg) -> Item[Request]:
    """The command in a message. Raises ``ValueError`` for what cannot even be answered: no project, or no usable command id."""
    parts = message.subject.split(".")
    place = message.metadata
    otherwise = (message.headers or {}).get("Nats-Msg-Id", "")
    if not COMMAND_ID.fullmatch(otherwise):
        otherwise = derived("submitted", place.sequence.stream, place.timestamp.isoformat())
    try:
        request = read_request(parts[3], ".".join(parts[4:]), message.headers, message.data, otherwise)
    except (Invalid, Refused) as refused:
        raise ValueError(f"{refused.code}: {refused.message}") from None
    request.actor = f"project/{request.project}"
    return Item(request, f"{request.project}/{request.command_id}", request.command_id)
