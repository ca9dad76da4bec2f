"""Dead letters: what could not be delivered, or was given up, with the reason; the bus's own advisories are the list.

A terminated message is gone from its work queue, so its body is not there any more; one that ran out of deliveries still is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import orjson
from nats.aio.client import Client

from bus import direct, subjects
from bus.requests import ABSENT, ApiError, call, store


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """``seq`` is its place in ``DEAD``; ``stream`` and ``stream_seq`` say where the message was. ``body`` is None when it is gone."""

    seq: int
    time: datetime
    kind: Literal["terminated", "undeliverable"]
    stream: str
    consumer: str
    stream_seq: int
    deliveries: int
    reason: str
    subject: str | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class DeadLetters:
    """Lists, puts back, and forgets."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def list(self, *, stream: str = "*", after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Oldest first, from behind ``after``; only those of one stream if asked. Raises ``Refused`` (``bus.unavailable``)."""
        got = await direct.batch(self._nc, subjects.DEAD, f"$JS.EVENT.ADVISORY.CONSUMER.*.{stream}.*", after + 1, limit)
        return [await self._read(message) for message in got.messages]

    async def put_back(self, letter: DeadLetter) -> None:
        """Store the message again on its subject, as a new one, and forget the letter. Raises ``LookupError`` when its body is gone."""
        if letter.subject is None or letter.body is None:
            raise LookupError(f"message {letter.stream_seq} of {letter.stream} is not there any more")
        kept = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
        await store(self._nc, letter.subject, letter.body, msg_id=f"dead-{letter.stream}-{letter.seq}", headers=kept)
        await self.forget(letter)

    async def forget(self, letter: DeadLetter) -> None:
        """Remove the letter, and the message it is about if that still lies there."""
        if letter.body is not None:
            await self._delete(letter.stream, letter.stream_seq)
        await self._delete(subjects.DEAD, letter.seq)

    async def _delete(self, stream: str, seq: int) -> None:
        try:
            await call(self._nc, f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code not in ABSENT:
                raise

    async def _read(self, message: direct.Stored) -> DeadLetter:
        said = orjson.loads(message.data)
        terminated = ".MSG_TERMINATED." in message.subject
        original: direct.Stored | None = None
        if not terminated:
            original = await direct.get(self._nc, said["stream"], seq=said["stream_seq"])
        return DeadLetter(
            seq=message.seq,
            time=datetime.fromisoformat(said["timestamp"][:19] + "+00:00"),
            kind="terminated" if terminated else "undeliverable",
            stream=said["stream"],
            consumer=said["consumer"],
            stream_seq=said["stream_seq"],
            deliveries=said.get("deliveries", 0),
            reason=said.get("reason") or ("" if terminated else "delivered too often without an answer"),
            subject=original.subject if original else None,
            body=original.data if original else None,
            headers=original.headers if original else {},
        )
