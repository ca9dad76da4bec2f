"""Dead letters: what could not be delivered, or was given up, with the reason and the message itself.

The bus's own advisories are the list. A terminated message is gone from its work queue, so whoever gives it up first puts a copy beside the
advisories, on ``strand.dead.<owner>.<stream>.<sequence>``; one that ran out of deliveries still lies where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ConfigDict, ValidationError

from bus import direct, subjects
from bus.requests import ABSENT, ApiError, call, store
from domain.kernel.aggregate import Record
from domain.kernel.errors import Refused

log = structlog.get_logger(__name__)

CONTROL: Final = "_control"
"""The owner of what the control plane gave up; no node can have such a name."""
LARGEST: Final = 1 << 20
"""Bytes of a body that is kept; the largest order has a command's 256 KiB in it."""
KEEP_S: Final = 5.0
"""How long keeping is tried. A message that kills whoever takes it must not stay because its copy cannot be stored."""
LANES: Final = "LANES-"


class _Copy(Record):
    """What is kept of a message: a body of more than ``LARGEST`` bytes is not. In base64."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    subject: str
    headers: dict[str, str] = {}
    reason: str = ""
    size: int = 0
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """``seq`` is its place in ``DEAD``; ``stream`` and ``stream_seq`` say where the message was. ``body`` is None when it is gone.

    ``copy`` is the place in ``DEAD`` of the copy that was kept, 0 without one.
    """

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
    copy: int = 0


async def keep(nc: Client, owner: str, stream: str, message: Msg, reason: str) -> None:
    """Put a copy of a message that is about to be terminated into ``DEAD``. What cannot be kept is named in the log, without its body."""
    seq = message.metadata.sequence.stream
    body = message.data if len(message.data) <= LARGEST else None
    copy = _Copy(subject=message.subject, headers=message.headers or {}, reason=reason, size=len(message.data), body=body)
    try:
        await store(nc, subjects.dead(owner, stream, seq), copy.model_dump_json().encode(), msg_id=f"{owner}.{stream}.{seq}", within=KEEP_S)
    except (Refused, ApiError) as error:
        log.warning("dead.not-kept", stream=stream, seq=seq, subject=message.subject, reason=reason, error=repr(error))


class DeadLetters:
    """Lists, puts back, and forgets."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def list(self, *, stream: str = "*", after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Oldest first, from behind ``after``; only those of one stream if asked. Raises ``Refused`` (``bus.unavailable``)."""
        got = await direct.batch(self._nc, subjects.DEAD, f"$JS.EVENT.ADVISORY.CONSUMER.*.{stream}.*", after + 1, limit)
        return [await self._read(message) for message in got.messages]

    async def put_back(self, letter: DeadLetter) -> None:
        """Store the message again on its subject, as a new one, and forget the letter.

        Raises ``LookupError`` when its body is gone, or when it is a commit: the log has that, and takes nothing twice.
        """
        if letter.stream == subjects.EVENTS:
            raise LookupError(f"commit {letter.stream_seq} is in the log; it cannot be put there again")
        if letter.subject is None or letter.body is None:
            raise LookupError(f"message {letter.stream_seq} of {letter.stream} is not there any more")
        kept = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
        entry = await self._entry(letter.stream, letter.subject)
        await store(self._nc, entry, letter.body, msg_id=f"dead-{letter.stream}-{letter.seq}", headers=kept)
        await self.forget(letter)

    async def forget(self, letter: DeadLetter) -> None:
        """Remove the letter, its copy, and the message it is about if that still lies there undelivered."""
        if letter.kind == "undeliverable" and letter.body is not None and letter.stream != subjects.EVENTS:
            await self._delete(letter.stream, letter.stream_seq)
        if letter.copy:
            await self._delete(subjects.DEAD, letter.copy)
        await self._delete(subjects.DEAD, letter.seq)

    async def _entry(self, stream: str, subject: str) -> str:
        """Where to publish what is stored on ``subject``: a partitioned lane takes its orders on another one (``streams.lane_entry``)."""
        transform = (await call(self._nc, f"STREAM.INFO.{stream}"))["config"].get("subject_transform")
        return subject if transform is None else transform["src"].removesuffix("*.*") + subject.removeprefix("strand.lane.")

    async def _delete(self, stream: str, seq: int) -> None:
        try:
            await call(self._nc, f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code not in ABSENT:
                raise

    async def _read(self, message: direct.Stored) -> DeadLetter:
        said = orjson.loads(message.data)
        terminated = ".MSG_TERMINATED." in message.subject
        copied = await self._copy(said) if terminated else {}
        if not copied:
            original = await direct.get(self._nc, said["stream"], seq=said["stream_seq"])
            copied = {} if original is None else {"subject": original.subject, "body": original.data, "headers": original.headers}
        return DeadLetter(
            seq=message.seq,
            time=datetime.fromisoformat(said["timestamp"][:19] + "+00:00"),
            kind="terminated" if terminated else "undeliverable",
            stream=said["stream"],
            consumer=said["consumer"],
            stream_seq=said["stream_seq"],
            deliveries=said.get("deliveries", 0),
            reason=said.get("reason") or ("" if terminated else "delivered too often without an answer"),
            **copied,
        )

    async def _copy(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What was kept of a terminated message. A node's word counts for its own lane only: its copies are put back with our rights."""
        lane = said["stream"].startswith(LANES)
        owner = said["consumer"] if lane else CONTROL
        found = await direct.get(
            self._nc, subjects.DEAD, leader=True, last_by_subj=subjects.dead(owner, said["stream"], said["stream_seq"])
        )
        if found is None:
            return {}
        try:
            kept = _Copy.model_validate_json(found.data)
        except ValidationError:
            kept = _Copy(subject="")
        if lane and not kept.subject.startswith(f"strand.lane.{owner}."):
            log.warning("dead.copy-refused", owner=owner, stream=said["stream"], subject=kept.subject[:200])
            return {"copy": found.seq}
        return {"subject": kept.subject, "headers": {} if lane else kept.headers, "body": kept.body, "copy": found.seq}
