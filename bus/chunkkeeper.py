"""Which chunks are stored, as nodes ask for it: they may put and read chunks, and may not ask JetStream, which would answer about all.

A request on ``strand.missing`` names digests, its answer those of them that are not stored. Any control plane answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Self

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from bus import answers, chunks
from bus.requests import ApiError, patiently, request
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

SUBJECT: Final = "strand.missing"
AT_MOST: Final = 1000
"""Digests in one question."""
ANSWER_S: Final = 10.0
WITHIN_S: Final = 60.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


async def ask_missing(nc: Client, digests: Iterable[str]) -> set[str]:
    """Which of these are not stored, by a control plane's word. Raises ``Refused`` (``bus.unavailable``)."""
    rest, found = iter(dict.fromkeys(digests)), set()
    while some := list(islice(rest, AT_MOST)):
        found |= set(await patiently(lambda left, some=some: _ask(nc, some, left), WITHIN_S))  # type: ignore[misc]  # some is bound
    return found


async def _ask(nc: Client, digests: Sequence[str], left: float) -> list[str]:
    reply = answers.read(await request(nc, SUBJECT, orjson.dumps(digests), {}, min(left, ANSWER_S)))
    return list(reply["items"])


class ChunkKeeper:
    """Answers such questions while the block runs."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._nc.subscribe(SUBJECT, queue="q", cb=self._answer)
        await self._nc.flush()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()

    async def _answer(self, message: Msg) -> None:
        if not answers.is_inbox(message.reply):
            log.warning("chunks.reply-refused", reply=message.reply)
            return
        try:
            missing = await chunks.missing(self._nc, _digests(message.data))
            reply = answers.found(0, {"items": sorted(missing)})
        except Refused as refused:
            reply = answers.refusal(None, refused)
        except (ApiError, NatsError) as error:
            log.warning("chunks.not-looked-at", error=repr(error))
            reply = answers.refusal(None, Refused("bus.unavailable", "the chunks cannot be looked at now", retryable=True))
        await self._nc.publish(message.reply, reply)


def _digests(data: bytes) -> list[str]:
    try:
        asked = orjson.loads(data)
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, list) or len(asked) > AT_MOST or not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in asked):
        raise Refused("query.invalid", f"not a list of at most {AT_MOST} digests")
    return asked
