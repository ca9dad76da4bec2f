"""Tokens for workloads, from a control plane to the node that runs them: a request on ``strand.identity.<node>`` (docs/adr/0024).

A node asks on its own subject only (``bus/accounts.py``), so that what it is told can depend on who it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus import answers, subjects
from bus.requests import request
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

ANSWER_S: Final = 5.0
MAX_BODY: Final = 1024


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token, and from when until when it holds."""

    text: str
    issued_at: datetime
    expires_at: datetime


Issue = Callable[[str, str, str], Awaitable[Token]]
"""Of a node, a project and a sandbox. Raises ``Refused``."""


async def ask(nc: Client, node: str, project: str, sandbox: str) -> Token:
    """A token for a sandbox that runs there. Raises ``Refused``: as the control plane says, or ``bus.unavailable`` when none answers."""
    body = orjson.dumps({"project": project, "sandbox_id": sandbox})
    said = answers.read(await request(nc, subjects.identity(node), body, {}, ANSWER_S))
    return Token(said["token"], datetime.fromisoformat(said["issued_at"]), datetime.fromisoformat(said["expires_at"]))


class Desk:
    """Answers nodes while the block runs. Any control plane that issues tokens may."""

    def __init__(self, nc: Client, issue: Issue) -> None:
        self._nc = nc
        self._issue = issue
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._nc.subscribe(subjects.ALL_IDENTITY, queue="q", cb=self._answer)
        await self._nc.flush()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()

    async def _answer(self, message: Msg) -> None:
        if not answers.is_inbox(message.reply):
            log.warning("identity.reply-refused", reply=message.reply)
            return
        try:
            token = await self._issue(message.subject.rsplit(".", 1)[1], *_asked(message.data))
            times = {"issued_at": token.issued_at.isoformat(), "expires_at": token.expires_at.isoformat()}
            reply = answers.found(0, {"token": token.text, **times})
        except Refused as refused:
            reply = answers.refusal(None, refused)
        except Exception as error:
            log.exception("identity.not-issued", error=repr(error))
            reply = answers.refusal(None, Refused("identity.failed", "no token could be made now", retryable=True))
        await self._nc.publish(message.reply, reply)


def _asked(data: bytes) -> tuple[str, str]:
    try:
        asked = orjson.loads(data) if len(data) <= MAX_BODY else {}
        return subjects.token(asked["project"]), subjects.token(asked["sandbox_id"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise Refused("query.invalid", "not the project and id of a sandbox") from None
