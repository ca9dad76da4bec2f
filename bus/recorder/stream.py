"""One stream of a recorder: made when missing, read by subject, written so that a lost acknowledgement does no harm.

A write that nobody acknowledged is sent again with the same message ids. One server then answers "conflict" and three answer "duplicate"
(reference/jetstream-eventstore.md §1.1); both are success when a stored message carries our id, also when others stand on top of it by now.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
from eventsourcing.persistence import OperationalError

from bus import direct
from bus.direct import Stored
from bus.recorder.bridge import Bridge
from bus.replies import UnansweredError
from bus.requests import WITHIN_S, Ack, ApiError, Message, call, patiently
from bus.streams import StreamMismatchError, ensure_stream

EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECT_STREAM: Final = "Nats-Expected-Last-Sequence"
MSG_ID: Final = "Nats-Msg-Id"
PAGE: Final = 1000
KNOWN_ID: Final = 10201
CONFLICTS: Final = frozenset({10071, 10164, KNOWN_ID, 10077})
"""Stale expectation, write in flight, known message id in a batch, one message per subject."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


class ConflictError(Exception):
    """Somebody else wrote first; nothing of ours is stored. ``number`` is the server's error number."""

    def __init__(self, number: int) -> None:
        super().__init__(str(number))
        self.number = number


def token(value: object) -> str:
    """Any text as one subject token, and different texts as different ones."""
    text = str(value)
    return text if _TOKEN.fullmatch(text) else "~" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Record:
    """A message to store: the last token of its subject, its headers and body. ``expect``: the subject's last position, None for any."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    expect: int | None = None


class RecorderStream:
    """The stream ``name`` with the subjects ``name.>``."""

    def __init__(self, bridge: Bridge, name: str, replicas: int, **settings: Any) -> None:
        self.bridge = bridge
        self.name = name
        self._replicas = replicas
        bridge.call(self._ensure(settings))

    async def _ensure(self, settings: dict[str, Any]) -> None:
        config = {
            "name": self.name,
            "subjects": [f"{self.name}.>"],
            "storage": "file",
            "num_replicas": self._replicas,
            "allow_direct": True,
            "allow_atomic": True,
            "duplicate_window": 120_000_000_000,
            **settings,
        }
        try:
            await ensure_stream(self.bridge.nc, config)
        except (StreamMismatchError, nats.errors.Error) as error:
            raise OperationalError(str(error)) from error

    def subject(self, *parts: object) -> str:
        """``<name>.<part>...``."""
        return ".".join([self.name, *(str(part) for part in parts)])

    async def last(self, subject: str) -> Stored | None:
        """The last message on ``subject``, as the leader has it: versions are counted from it."""
        return await direct.get(self.bridge.nc, self.name, last_by_subj=subject, leader=True)

    async def position(self) -> int:
        """The stream's last sequence."""
        info = await call(self.bridge.nc, f"STREAM.INFO.{self.name}")
        return int(info["state"]["last_seq"])

    async def scan(
        self, subject: str, seq: int = 1, limit: int | None = None, stop: int | None = None, keep: Callable[[Stored], bool] | None = None
    ) -> list[Stored]:
        """Messages on ``subject`` from ``seq`` to ``stop`` that ``keep`` wants, at most ``limit``."""
        found: list[Stored] = []
        while limit is None or len(found) < limit:
            count = PAGE if limit is None or keep is not None else min(PAGE, limit - len(found))
            page = await direct.batch(self.bridge.nc, self.name, subject, max(seq, 1), count)
            for message in page.messages:
                if stop is not None and message.seq > stop:
                    return found
                if keep is None or keep(message):
                    found.append(message)
            if not page.next_seq:
                break
            seq = page.next_seq
        return found if limit is None else found[:limit]

    async def put(self, records: Sequence[Record]) -> list[int]:
        """Store all or none; their positions. Raises ``ConflictError``, ``OperationalError``."""
        batch = uuid.uuid4().hex
        messages = [self._message(record, f"{batch}-{n}") for n, record in enumerate(records)]

        sent = 0

        async def once(_: float) -> list[int]:
            nonlocal sent
            sent += 1
            try:
                ack = await self._publish(messages)
            except ApiError as error:
                if error.err_code not in CONFLICTS:
                    raise
                if sent == 1:
                    raise ConflictError(error.err_code) from None
                return await self._ours(messages, error.err_code)
            return list(range(ack.seq - len(messages) + 1, ack.seq + 1))

        try:
            return await patiently(once, WITHIN_S, pause=0.01)
        except (UnansweredError, ApiError) as error:
            raise OperationalError(f"stream {self.name}: {error}") from error

    async def _publish(self, messages: Sequence[Message]) -> Ack:
        publisher = self.bridge.publisher
        if len(messages) == 1:
            return await publisher.publish(*messages[0])
        return await publisher.publish_batch(messages)

    async def _ours(self, messages: Sequence[Message], number: int) -> list[int]:
        """The positions of an earlier sending that nobody acknowledged, if it is what stands where the messages were to go.

        Raises ``ConflictError`` when something else does, and ``UnansweredError`` while nothing does.
        """
        index, found = await self._in_place(messages, number)
        if found is None:
            raise UnansweredError("another write is under way, perhaps our own")
        if found.headers.get(MSG_ID) != (messages[index].headers or {})[MSG_ID]:
            raise ConflictError(number)
        first = found.seq - index
        return list(range(first, first + len(messages)))

    async def _in_place(self, messages: Sequence[Message], number: int) -> tuple[int, Stored | None]:
        """Which of the messages can be looked for, and what the leader has in its place, whatever others have put on top of it."""
        nc = self.bridge.nc
        for index, message in enumerate(messages):
            headers = message.headers or {}
            if EXPECT in headers:
                after = int(headers[EXPECT]) + 1
                return index, await direct.get(nc, self.name, leader=True, seq=after, next_by_subj=message.subject)
            if EXPECT_STREAM in headers:
                return index, await direct.get(nc, self.name, leader=True, seq=int(headers[EXPECT_STREAM]) + 1)
        wanted = (messages[0].headers or {})[MSG_ID]
        found = await self.scan(messages[0].subject, limit=1, keep=lambda stored: stored.headers.get(MSG_ID) == wanted)
        if found or number == KNOWN_ID:  # then it is stored, even if whoever was asked does not have it yet
            return 0, found[0] if found else None
        return 0, await self.last(messages[0].subject)

    def _message(self, record: Record, msg_id: str) -> Message:
        headers = {**record.headers, MSG_ID: msg_id}
        if record.expect is not None:
            headers[EXPECT] = str(record.expect)
        return Message(record.subject, record.data, headers)
